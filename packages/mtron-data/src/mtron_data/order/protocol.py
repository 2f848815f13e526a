"""What every order does."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Piece(NamedTuple):
    """Tokens `start` to `stop` (exclusive) of the corpus."""

    start: int
    stop: int


class Order(Protocol):
    """Says of which pieces of the corpus each sample consists.

    A sample of `seq_len` tokens has `seq_len + 1`, because each predicts the next one; it may have
    fewer, and is padded then.
    """

    @property
    def num_samples(self) -> int | None:
        """Samples that there are; none if they never end."""
        ...

    def pieces(self, indices: Sequence[int]) -> list[list[Piece]]:
        """Return the pieces of samples.

        Args:
            indices: sample indices, each at least 0 and below `num_samples`.

        Returns:
            For each sample its pieces in order, none of them empty.
        """
        ...
