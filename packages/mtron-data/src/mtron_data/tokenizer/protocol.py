"""What every tokenizer does."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
    """Turns text into token ids and back.

    `decode(encode(text)) == text` for byte-level tokenizers.
    """

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; every id is below it."""
        ...

    @property
    def eos_id(self) -> int | None:
        """Id of the token that ends a document; none if the tokenizer names none."""
        ...

    def encode(
        self, text: str, *, add_special_tokens: bool = False, parse_special_tokens: bool = False
    ) -> list[int]:
        """Return the ids of `text`.

        Args:
            text: any text.
            add_special_tokens: also add what the tokenizer puts around a text, such as a
                beginning-of-sequence token.
            parse_special_tokens: read the name of a special token in `text` as that token, as
                rendered chat templates need it, and not as ordinary text. Never for text from
                strangers.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts, each as `encode` with its defaults does."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of `ids`.

        Args:
            ids: each at least 0 and below `vocab_size`.
            skip_special_tokens: leave out special tokens instead of writing their names.
        """
        ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """Return a conversation as one text, to be encoded with `parse_special_tokens=True`.

        Args:
            messages: `{"role": ..., "content": ...}` each.
            add_generation_prompt: end with the beginning of the assistant's answer.
            **variables: further variables of the template, such as `tools`.
        """
        ...
