"""One continuation while it grows: its tokens, its text, and when it ends."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mtron_infer.config import SamplingParams
from mtron_infer.detokenize import Detokenizer, StopMatcher
from mtron_infer.outputs import FinishReason, Output, TokenLogprob

Decode: TypeAlias = "Callable[[Sequence[int]], str]"

_CONTEXT_TOKENS = 4
"""Prompt tokens decoded with the first new one: some decoders drop a space at the start."""


@dataclass(frozen=True)
class Score:
    """The log-probability of a token, and the most probable tokens with theirs, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class PreparedRequest:
    """A request that was checked and tokenized: everything that can be refused has been.

    Attributes:
        prompt: token ids, at least one.
        text: the prompt as text.
        params: how to continue it.
        seed: of the random numbers.
        max_tokens: as many as asked for and as the context has room for.
    """

    prompt: tuple[int, ...]
    text: str
    params: SamplingParams
    seed: int
    max_tokens: int


class Continuation:
    """One of the `n` choices of a request.

    Attributes:
        request_id: of the engine.
        index: which choice.
        request: what was asked for.
        random_key: of the generator, from the seed and the choice.
        tokens: ids of the prompt and of what was sampled.
        counts: how often each token was sampled.
        num_generated: tokens sampled.
        finished: whether the last output was made.
    """

    def __init__(
        self,
        request_id: int,
        index: int,
        request: PreparedRequest,
        random_key: Any,
        decode: Decode,
        eos_ids: Collection[int],
    ) -> None:
        self.request_id = request_id
        self.index = index
        self.request = request
        self.random_key = random_key
        self.tokens = list(request.prompt)
        self.counts: Counter[int] = Counter()
        self.num_generated = 0
        self._sum_logprob = 0.0
        self.finished = False
        self._decode = decode
        self._eos_ids = () if request.params.ignore_eos else eos_ids
        self._detokenizer = Detokenizer(decode, request.prompt[-_CONTEXT_TOKENS:])
        self._stop = StopMatcher(request.params.stop)
        self._prompt_scores: list[Score] = []
        self._echo_pending = request.params.echo
        self._held: list[TokenLogprob] = []
        self._num_chars = len(request.text) if request.params.echo else 0  # text decoded so far
        self._num_shown = self._num_chars  # of it, handed out

    @property
    def wants_prompt_scores(self) -> bool:
        """Whether the log-probabilities of the prompt's tokens are asked for."""
        return self.request.params.echo and self.request.params.logprobs is not None

    def add_prompt_scores(self, scores: Iterable[Score]) -> None:
        """Take the scores of the next prompt tokens; the first token has none."""
        self._prompt_scores.extend(scores)

    def finish_empty(self) -> Output:
        """End without a token, as `max_tokens = 0` asks for."""
        return self._finish("length")

    def abort(self) -> Output:
        """End because it was cancelled or cannot go on; its scores may be no numbers."""
        self._prompt_scores.clear()
        return self._finish("abort")

    def append(self, token_id: int, score: Score | None) -> Output:
        """Take the next token and return what can be handed out now."""
        self.tokens.append(token_id)
        self.num_generated += 1
        self._sum_logprob += score.logprob if score else 0.0
        if token_id in self._eos_ids:
            return self._finish("stop")
        self.counts[token_id] += 1
        self._held.append(_token(token_id, self._num_chars, score))
        text = self._advance(self._detokenizer.push(token_id))
        if self._stop.matched:
            return self._last_output(text, "stop")
        if self.num_generated == self.request.max_tokens:
            return self._finish("length", text)
        return self._output(text)

    def _advance(self, decoded: str) -> str:
        """Account for decoded text and return what of it can be handed out."""
        self._num_chars += len(decoded)
        text = self._stop.push(decoded)
        self._num_shown += len(text)
        return text

    def _finish(self, reason: FinishReason, text: str = "") -> Output:
        """Hand out what was held back, in which a stop string may still be found."""
        text += self._advance(self._detokenizer.flush())
        if self._stop.matched:
            return self._last_output(text, "stop")
        rest = self._stop.flush()
        self._num_shown += len(rest)
        return self._last_output(text + rest, reason, everything=True)

    def _last_output(self, text: str, reason: FinishReason, everything: bool = False) -> Output:
        self.finished = True
        return self._output(text, reason, everything)

    def _output(
        self, text: str, reason: FinishReason | None = None, everything: bool = False
    ) -> Output:
        ready = [t for t in self._held if everything or t.text_offset < self._num_shown]
        self._held = self._held[len(ready) :]
        if self._echo_pending:
            self._echo_pending = False
            text = self.request.text + text
            ready = self._prompt_tokens() + ready
        return Output(
            self.request_id,
            self.index,
            text,
            tuple(ready),
            self.num_generated,
            self._sum_logprob,
            reason,
        )

    def _prompt_tokens(self) -> list[TokenLogprob]:
        """Return the prompt's tokens with their places in its text and their scores."""
        detokenizer, offset, limit = Detokenizer(self._decode), 0, len(self.request.text)
        scores = [None, *self._prompt_scores]
        scores += [None] * (len(self.request.prompt) - len(scores))
        tokens = []
        for token_id, score in zip(self.request.prompt, scores, strict=True):
            tokens.append(_token(token_id, min(offset, limit), score))
            offset += len(detokenizer.push(token_id))
        return tokens


def _token(token_id: int, offset: int, score: Score | None) -> TokenLogprob:
    if score is None:
        return TokenLogprob(token_id, offset, None)
    return TokenLogprob(token_id, offset, score.logprob, score.top)
