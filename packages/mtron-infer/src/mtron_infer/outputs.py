"""What goes into an engine and what comes out. Imports no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mtron_infer.config import SamplingParams

Prompt: TypeAlias = "str | Sequence[int]"
"""Text, or token ids."""

FinishReason: TypeAlias = Literal["stop", "length", "abort"]
"""`stop`: end-of-text token or stop string; `length`: token or context limit; `abort`: cancelled,
or the model gave numbers that are not finite."""


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it."""

    prompt: Prompt
    params: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True)
class TokenLogprob:
    """A token and how probable the model held it and others.

    Attributes:
        token_id: the token.
        text_offset: characters of the choice's text before it.
        logprob: natural logarithm of its probability; None for the first token of a sequence,
            and where log-probabilities were not asked for.
        top: the most probable tokens with their log-probabilities, best first.
    """

    token_id: int
    text_offset: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Output:
    """What one step added to one choice of one request.

    Text and tokens are handed out together: a token that may still become part of a stop string
    or of an unfinished character comes with a later output.

    Attributes:
        request_id: as `Engine.add` returned it.
        index: which of the request's `n` choices.
        text: new text.
        tokens: new tokens, those that begin in the text handed out so far.
        num_generated: tokens sampled for this choice so far, an end-of-text token included.
        sum_logprob: sum of their log-probabilities, if they were asked for, else 0.
        finish_reason: set in a choice's last output.
    """

    request_id: int
    index: int
    text: str
    tokens: tuple[TokenLogprob, ...]
    num_generated: int
    sum_logprob: float = 0.0
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Choice:
    """One finished continuation.

    Attributes:
        index: which of the `n`.
        text: the continuation, behind the prompt if `echo` was set.
        tokens: its tokens, without the end-of-text token and without those after a stop string.
        num_generated: all tokens sampled for it.
        sum_logprob: sum of their log-probabilities, if they were asked for, else 0.
        finish_reason: why it ended.
    """

    index: int
    text: str
    tokens: tuple[TokenLogprob, ...]
    num_generated: int
    sum_logprob: float
    finish_reason: FinishReason

    @property
    def token_ids(self) -> list[int]:
        """The ids of `tokens`."""
        return [token.token_id for token in self.tokens]


@dataclass(frozen=True)
class Completion:
    """All continuations of one prompt, with shortcuts for the first."""

    prompt_token_ids: tuple[int, ...]
    choices: tuple[Choice, ...]

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text

    @property
    def token_ids(self) -> list[int]:
        """The first choice's token ids."""
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """The first choice's reason to end."""
        return self.choices[0].finish_reason


def join_outputs(outputs: Iterable[Output]) -> list[Choice]:
    """Join the outputs of one request, all of them and in their order, into its choices."""
    parts: dict[int, list[Output]] = {}
    for output in outputs:
        parts.setdefault(output.index, []).append(output)
    return [_join(index, parts[index]) for index in sorted(parts)]


def _join(index: int, parts: list[Output]) -> Choice:
    last = parts[-1]
    assert last.finish_reason is not None, "the last output of a choice says why it ended"
    return Choice(
        index,
        "".join(part.text for part in parts),
        tuple(token for part in parts for token in part.tokens),
        last.num_generated,
        last.sum_logprob,
        last.finish_reason,
    )
