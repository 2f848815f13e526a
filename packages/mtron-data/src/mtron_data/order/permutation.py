"""A keyed shuffle of `range(size)` with random access in constant memory."""

import hashlib
import math

import numpy as np

_ROUNDS = 8
_MULTIPLIERS = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
_SHIFT = np.uint64(33)


class Permutation:
    """A bijection of `range(size)` that looks random and is decided by the key.

    An index is written as a pair `(low, high)` with `low < a`, `high < b` and `a * b` just above
    `size`; a Feistel network adds to each in turn a hash of the other, modulo `a` or `b`. Where
    the result is not below `size` it is permuted again ("cycle walking"), which happens to fewer
    than about one index in `sqrt(size)`.

    Reference: J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, sections 4
    and 5.

    Args:
        size: at least 1, below 2**63.
        key: any bytes.
    """

    def __init__(self, size: int, key: bytes) -> None:
        assert 1 <= size < 1 << 63
        self._size = np.uint64(size)
        low = math.isqrt(size - 1) + 1
        self._low = np.uint64(low)
        self._high = np.uint64(-(-size // low))
        digest = hashlib.blake2b(key, digest_size=8 * _ROUNDS, person=b"mtron-permute").digest()
        self._keys = np.frombuffer(digest, "<u8").astype(np.uint64)

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of `indices`.

        Args:
            indices: integers below `size`, any shape.

        Returns:
            int64 of the same shape.
        """
        values = self._network(np.asarray(indices).astype(np.uint64))
        while (outside := values >= self._size).any():
            values[outside] = self._network(values[outside])
        return values.astype(np.int64)

    def _network(self, values: np.ndarray) -> np.ndarray:
        high, low = np.divmod(values, self._low)
        for even, odd in self._keys.reshape(-1, 2):
            low = (low + _hash(high ^ even) % self._low) % self._low
            high = (high + _hash(low ^ odd) % self._high) % self._high
        return high * self._low + low


def _hash(values: np.ndarray) -> np.ndarray:
    """Mix 64 bits (the finalizer of MurmurHash3)."""
    for multiplier in _MULTIPLIERS:
        values = (values ^ (values >> _SHIFT)) * multiplier
    return values ^ (values >> _SHIFT)
