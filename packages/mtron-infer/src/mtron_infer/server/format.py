"""Completions as OpenAI's JSON."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtron_infer.outputs import Choice, FinishReason, TokenLogprob


@dataclass(frozen=True)
class Formatter:
    """Formats the answers to one request.

    Attributes:
        model: name of the model.
        token_text: text of one token.
        with_logprobs: whether log-probabilities were asked for.
        id: of the answer.
        created: Unix time in seconds.
    """

    model: str
    token_text: Callable[[int], str]
    with_logprobs: bool
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def body(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return a whole answer, or one chunk of a stream."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **more,
        }

    def choice(
        self, index: int, text: str, tokens: Sequence[TokenLogprob], reason: FinishReason | None
    ) -> dict[str, Any]:
        """Return one choice, or what a chunk adds to it."""
        logprobs = self._logprobs(tokens) if self.with_logprobs else None
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        return {
            "tokens": [self.token_text(token.token_id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": [token.text_offset for token in tokens],
        }

    def _top(self, token: TokenLogprob) -> dict[str, float] | None:
        """Return the most probable tokens and the chosen one; of equal texts the more probable."""
        if token.logprob is None:
            return None
        top: dict[str, float] = {}
        for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
            top.setdefault(self.token_text(token_id), logprob)
        return top


def best(choices: Sequence[Choice], n: int) -> list[Choice]:
    """Return the `n` choices with the highest log-probability per token, best first.

    With no more than `n` choices their order stays.
    """
    if len(choices) <= n:
        return list(choices)
    return sorted(choices, key=_mean_logprob, reverse=True)[:n]


def _mean_logprob(choice: Choice) -> float:
    return choice.sum_logprob / max(choice.num_generated, 1)


def usage(num_prompt_tokens: int, num_generated: int) -> dict[str, int]:
    """Return the count of tokens as OpenAI names it."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt_tokens + num_generated,
    }
