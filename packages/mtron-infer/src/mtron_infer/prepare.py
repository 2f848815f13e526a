"""Check and tokenize requests, so that nothing can be refused once they are in the queue."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Protocol

from mtron_infer.outputs import Prompt, Request
from mtron_infer.sequence import PreparedRequest


class TextCodec(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def eos_id(self) -> int | None:
        """The end-of-text token, if there is one."""
        ...

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        ...

    def encode(self, text: str, /) -> list[int]:
        """Return the token ids of `text`."""
        ...

    def decode(self, token_ids: Sequence[int], /, *, skip_special_tokens: bool = False) -> str:
        """Return the text of `token_ids`."""
        ...


@dataclass(frozen=True)
class Preparer:
    """Checks requests against a model and a queue; may be used by several threads at once.

    Attributes:
        tokenizer: turns text into token ids.
        vocab_size: token ids are below it.
        max_len: tokens that the context holds.
        max_choices: sequences that the queue takes at most.
    """

    tokenizer: TextCodec
    vocab_size: int
    max_len: int
    max_choices: int

    def prepare(self, request: Request) -> PreparedRequest:
        """Return the request as token ids.

        Raises:
            ValueError: the request can never run; the message begins with the field's name.
        """
        params = request.params
        if params.n > self.max_choices:
            raise ValueError(
                f"n: the queue takes at most {self.max_choices} sequences, got {params.n}"
            )
        outside = next((t for t in params.logit_bias if not 0 <= t < self.vocab_size), None)
        if outside is not None:
            raise ValueError(f"logit_bias: token ids are 0 to {self.vocab_size - 1}, got {outside}")
        prompt = self._token_ids(request.prompt)
        room = self._room(len(prompt), params.max_tokens)
        text = self._text(request.prompt, prompt) if params.echo else ""
        seed = secrets.randbits(63) if params.seed is None else params.seed
        return PreparedRequest(prompt, text, params, seed, min(params.max_tokens, room))

    def check_token_ids(self, name: str, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Return `token_ids` as Python integers.

        Args:
            name: what to call them in an error.
            token_ids: integers of any kind.

        Raises:
            ValueError: there are none, too many for the context, or some not in the vocabulary.
        """
        if not len(token_ids):
            raise ValueError(f"{name}: is empty; give at least one token")
        self._check_length(name, len(token_ids))
        try:
            ids = tuple(index(token) for token in token_ids)
        except TypeError:
            raise ValueError(f"{name}: must be text or integers; give token ids as ints") from None
        outside = next((t for t in ids if not 0 <= t < self.vocab_size), None)
        if outside is not None:
            raise ValueError(f"{name}: token ids are 0 to {self.vocab_size - 1}, got {outside}")
        return ids

    def _token_ids(self, prompt: Prompt) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return self.check_token_ids("prompt", prompt)
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"prompt: is not valid Unicode text ({error.reason})") from None
        ids = self.tokenizer.encode(prompt)
        if not ids:
            if self.tokenizer.eos_id is None:
                raise ValueError("prompt: has no token, and this model has none to begin a text")
            ids = [self.tokenizer.eos_id]  # stands before every document in training
        return self.check_token_ids("prompt", ids)

    def _check_length(self, name: str, length: int) -> None:
        if length > self.max_len:
            raise ValueError(
                f"{name}: has {length} tokens, but the context holds {self.max_len}; shorten it"
            )

    def _room(self, length: int, max_tokens: int) -> int:
        """Return how many tokens can follow the prompt."""
        if max_tokens and length == self.max_len:
            raise ValueError(
                f"prompt: has {length} tokens and fills the context of {self.max_len}, "
                "so nothing can follow; shorten it, or set max_tokens = 0 to score it"
            )
        return self.max_len - length

    def _text(self, prompt: Any, ids: tuple[int, ...]) -> str:
        return (
            prompt
            if isinstance(prompt, str)
            else self.tokenizer.decode(ids, skip_special_tokens=True)
        )
