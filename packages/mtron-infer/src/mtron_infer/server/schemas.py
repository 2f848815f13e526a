"""The body of `POST /v1/completions`: OpenAI's fields, each honoured or refused by name."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

from mtron_infer.config import MAX_CHOICES, SamplingParams
from mtron_infer.outputs import Prompt, Request
from mtron_infer.server.errors import ApiError

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

# Fields that go to SamplingParams as they are, which also knows their ranges.
_SAMPLING = (
    "max_tokens",
    "top_p",
    "top_k",
    "seed",
    "logprobs",
    "echo",
    "presence_penalty",
    "frequency_penalty",
    "ignore_eos",
)

_PROMPT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1},
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
            "minItems": 1,
        },
    ]
}


class StreamOptions(BaseModel):
    """What a stream contains."""

    model_config = _STRICT

    include_usage: bool | None = None


class CompletionRequest(BaseModel):
    """A request for completions; null means the default everywhere.

    `top_k` and `ignore_eos` are not OpenAI's, but common among servers of its kind.
    """

    model_config = _STRICT

    model: str
    prompt: Annotated[Any, WithJsonSchema(_PROMPT_SCHEMA)] = ""
    max_tokens: int | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: float | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = None
    echo: bool | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    user: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    suffix: Any = None
    top_k: int | None = None
    ignore_eos: bool | None = None

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise ValueError(f"keys are token ids, got {key[:40]!r}")
        return value

    def prompts(self) -> list[Prompt]:
        """Return the prompts one by one, each as text or token ids.

        Raises:
            ApiError: they have none of the four forms.
        """
        value = "" if self.prompt is None else self.prompt
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and value:
            if all(isinstance(item, str) for item in value):
                return value
            if _is_ids(value):
                return [value]
            if all(isinstance(item, list) and item and _is_ids(item) for item in value):
                return value
        raise ApiError(
            400,
            "prompt: must be a string, a list of strings, a list of token ids or a list of lists "
            "of token ids, and not be empty",
            "invalid_value",
            "prompt",
        )

    def num_candidates(self) -> int:
        """Return how many continuations to generate for each prompt.

        Raises:
            ApiError: fields contradict each other.
        """
        n, best_of = self.n or 1, self.best_of or self.n or 1
        if best_of < n:
            raise ApiError(
                400, f"best_of: is less than n = {n}, got {best_of}", "invalid_value", "best_of"
            )
        if best_of > n and self.stream:
            raise ApiError(
                400,
                "best_of: cannot be streamed, because the best is known only at the end; "
                "use best_of = n or stream = false",
                "invalid_value",
                "best_of",
            )
        return best_of

    def requests(self) -> list[Request]:
        """Return what the engine is to do: one request per prompt.

        Raises:
            ApiError: fields contradict each other or are not supported.
            pydantic.ValidationError: a number is out of its range.
        """
        if self.suffix is not None:
            raise ApiError(
                400, "suffix: this model does not insert text; leave it out", param="suffix"
            )
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                400, "stream_options: only for stream = true", "invalid_value", "stream_options"
            )
        values = {name: getattr(self, name) for name in _SAMPLING}
        values |= {"temperature": self.temperature, "n": self.num_candidates()}
        if self.stop is not None:
            values["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if self.logit_bias is not None:
            values["logit_bias"] = {int(key): bias for key, bias in self.logit_bias.items()}
        if self.num_candidates() > (self.n or 1) and self.logprobs is None:
            values["logprobs"] = 0  # candidates are compared by them
        params = SamplingParams(**{k: v for k, v in values.items() if v is not None})
        return [Request(prompt, params) for prompt in self.prompts()]


def _is_ids(items: list[Any]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) for item in items)
