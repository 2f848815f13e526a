"""Shuffled samples without end, each found without knowing any other."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from mtron_data.order.permutation import Permutation
from mtron_data.order.protocol import Piece

_VERSION = b"mtron-data stream order 1"
_MANY = 32  # from here on numpy is faster than Python's integers


class _Epoch(NamedTuple):
    phase: int
    permutation: Permutation


class StreamOrder:
    """An endless shuffled order, a function of the seed and nothing else.

    In each epoch the corpus is a ring, cut into `num_tokens // seq_len` windows from a point (the
    phase) that the seed and the epoch decide, and the windows come in an order that they decide
    too. So later epochs see other windows; in each epoch every token is predicted once, except
    the fewer than `seq_len` before the phase. Sample `i` costs the same time and no memory for
    every `i`, and does not depend on how many samples are asked for or by whom.

    Args:
        num_tokens: size of the corpus, more than `seq_len`.
        seq_len: tokens per sample.
        seed: any integer.
    """

    def __init__(self, num_tokens: int, seq_len: int, seed: int) -> None:
        self._num_tokens = num_tokens
        self._seq_len = seq_len
        self.samples_per_epoch = num_tokens // seq_len
        """Samples after which the corpus comes again."""
        self._epoch = lru_cache(maxsize=4)(
            partial(_build_epoch, num_tokens, self.samples_per_epoch, seed)
        )

    @property
    def num_samples(self) -> None:
        """None: the samples never end."""
        return

    def pieces(self, indices: Sequence[int]) -> list[list[Piece]]:
        """Return the pieces of samples; see `Order.pieces`."""
        return [self._ring(start) for start in self._starts(indices)]

    def _starts(self, indices: Sequence[int]) -> list[int]:
        if len(indices) < _MANY:
            return [self._start(index) for index in indices]
        number, within = np.divmod(np.asarray(indices, np.int64), self.samples_per_epoch)
        starts = np.empty_like(within)
        for epoch in np.unique(number):
            phase, permutation = self._epoch(int(epoch))
            chosen = number == epoch
            windows = permutation.images(within[chosen])
            starts[chosen] = (phase + windows * self._seq_len) % self._num_tokens
        return starts.tolist()

    def _start(self, index: int) -> int:
        number, within = divmod(index, self.samples_per_epoch)
        phase, permutation = self._epoch(number)
        return (phase + permutation.image(within) * self._seq_len) % self._num_tokens

    def _ring(self, start: int) -> list[Piece]:
        stop = start + self._seq_len + 1
        if stop <= self._num_tokens:
            return [Piece(start, stop)]
        return [Piece(start, self._num_tokens), Piece(0, stop - self._num_tokens)]


def _build_epoch(num_tokens: int, num_windows: int, seed: int, epoch: int) -> _Epoch:
    key = hashlib.blake2b(_VERSION + f" {seed} {epoch}".encode()).digest()
    phase = int.from_bytes(key[:32], "little") % num_tokens
    return _Epoch(phase, Permutation(num_windows, key[32:]))
