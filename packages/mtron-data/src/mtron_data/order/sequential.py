"""Samples from the first token to the last, for validation."""

from collections.abc import Sequence

from mtron_data.order.protocol import Piece


class SequentialOrder:
    """Sample `i` predicts tokens `i * seq_len + 1` and the `seq_len - 1` after it.

    The last sample ends with the corpus, so that every token but the first is predicted exactly
    once.

    Args:
        num_tokens: size of the corpus, at least 2.
        seq_len: tokens per sample.
    """

    def __init__(self, num_tokens: int, seq_len: int) -> None:
        self._num_tokens = num_tokens
        self._seq_len = seq_len
        self.num_samples = -(-(num_tokens - 1) // seq_len)
        """Samples that there are, a partial last one included."""

    def pieces(self, indices: Sequence[int]) -> list[list[Piece]]:
        """Return the pieces of samples; see `Order.pieces`."""
        starts = (index * self._seq_len for index in indices)
        return [
            [Piece(start, min(start + self._seq_len + 1, self._num_tokens))] for start in starts
        ]
