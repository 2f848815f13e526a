"""What an engine, a request and a server can be told. Imports no torch."""

from typing import Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

MAX_CHOICES = 128
"""Most continuations of one prompt."""

MAX_LOGPROBS = 20
"""Most alternatives reported per token."""

_STRICT = ConfigDict(
    frozen=True,
    extra="forbid",
    strict=True,
    use_attribute_docstrings=True,
    allow_inf_nan=False,
)


class EngineConfig(BaseModel):
    """Limits of one engine."""

    model_config = _STRICT

    max_batch_size: int = Field(default=16, ge=1)
    """Sequences that are generated together; each holds one slot of the key-value cache."""

    max_batch_tokens: int = Field(default=2048, ge=1)
    """Tokens in one pass through the model; longer prompts are spread over several passes."""

    max_queue: int = Field(default=256, ge=1)
    """Sequences that may wait for a slot; one more is refused."""

    max_len: int | None = Field(default=None, ge=1)
    """Longest sequence in tokens, prompt included; the model's own limit when not set."""

    @model_validator(mode="after")
    def _every_sequence_advances(self) -> Self:
        if self.max_batch_tokens < self.max_batch_size:
            raise ValueError(
                f"max_batch_tokens: {self.max_batch_tokens} is less than max_batch_size = "
                f"{self.max_batch_size}, so not every sequence could advance; use at least as many"
            )
        return self


class SamplingParams(BaseModel):
    """How one prompt is continued."""

    model_config = _STRICT

    max_tokens: int = Field(default=16, ge=0)
    """Most tokens to generate; 0 generates none, which together with `echo` scores a prompt."""

    temperature: float = Field(default=1.0, ge=0.0, le=100.0)
    """Divides the logits; 0 takes the most probable token."""

    top_k: int = Field(default=0, ge=0)
    """Sample among this many most probable tokens; 0 means all."""

    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Sample among the most probable tokens that together reach this probability."""

    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    """Number of continuations."""

    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """Fixes the random numbers, whatever else runs in the batch; drawn by the engine if not set."""

    stop: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = Field(
        default=(), max_length=16
    )
    """Strings that end the continuation; they are not part of it."""

    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Subtracted from the logits of tokens that were generated before."""

    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Subtracted from a token's logit once for each time it was generated before."""

    logit_bias: dict[int, Annotated[float, Field(ge=-100.0, le=100.0)]] = Field(
        default_factory=dict, max_length=1024
    )
    """Added to the logits of these token ids."""

    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """Report log-probabilities of the chosen token and of this many most probable ones. They are
    those of the model itself, before temperature, penalties, bias and truncation."""

    echo: bool = False
    """Give the prompt back in front of the continuation, with log-probabilities if asked for."""

    ignore_eos: bool = False
    """Go on after the end-of-text token, as benchmarks need it."""


class ServerConfig(BaseModel):
    """How a server presents itself and what it lets in."""

    model_config = _STRICT

    model_name: str = Field(default="mtron", min_length=1)
    """Name under which requests ask for the model."""

    api_key: str | None = Field(default=None, min_length=1)
    """If set, every request must carry it as a bearer token."""

    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Largest request body; a larger one gets status 413."""

    drain_seconds: int = Field(default=30, ge=0)
    """How long running requests may take to finish after the server was told to stop."""

    @field_validator("api_key")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        if value is not None and not (value.isascii() and value.isprintable()):
            raise ValueError("api_key: must be printable ASCII, as it travels in a header")
        return value
