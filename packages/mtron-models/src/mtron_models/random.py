"""Counter-based random numbers: a value depends on what it is for, never on who draws it.

Philox 4x32-10 turns a 64-bit key and a 128-bit counter into four random 32-bit words. Nothing is
advanced and nothing is stored, so any rank, batch split or schedule that asks for the number of
one purpose and index gets the same number. Keys are made from a name (what the numbers are for)
and from integers folded into it (seed, step, sample id).

Words are held in int64, because torch multiplies no unsigned integers. A key or counter word is a
Python int or an int64 tensor; tensors broadcast, and everything here can be compiled.

Reference: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import math
from collections.abc import Sequence
from hashlib import sha256
from typing import TypeAlias

import torch
from torch import Tensor

Word: TypeAlias = "int | Tensor"
"""A number in [0, 2**32): a Python int or an int64 tensor."""

Key: TypeAlias = "tuple[Word, Word]"
"""A 64-bit key as its low and high word."""

_MASK = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def philox(counter: tuple[Word, Word, Word, Word], key: Key) -> tuple[Word, Word, Word, Word]:
    """Return the four random words of `counter` under `key` (Philox 4x32-10).

    Args:
        counter: four words, ints or int64 tensors that broadcast together.
        key: two words that broadcast with them.

    Returns:
        Four words in [0, 2**32); tensors where any input is one.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The 64-bit products wrap around in int64 with the same bits as unsigned ones. c1 and c3
        # are only ever xor-ed, so their upper halves may hold rubbish until the masks below.
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0 = ((product_1 >> 32) ^ c1 ^ k0) & _MASK
        c2 = ((product_0 >> 32) ^ c3 ^ k1) & _MASK
        c1, c3 = product_1, product_0
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def key_of(name: str) -> Key:
    """Return the key of a purpose, such as `"init/embed.weight"`: 64 bits of its SHA-256.

    The hash cannot be traced by `torch.compile`: make the key once, outside `forward`.
    """
    digest = int.from_bytes(sha256(name.encode()).digest()[:8], "little")
    return digest & _MASK, digest >> 32


def fold_in(key: Key, first: Word, second: Word = 0) -> Key:
    """Return a new key from `key` and one or two 64-bit numbers, as independent as a hash.

    Args:
        key: two words.
        first: a 64-bit number, an int or an int64 tensor (for example a seed or a step).
        second: another one, broadcasting with it (for example a sample id).
    """
    counter = (first & _MASK, (first >> 32) & _MASK, second & _MASK, (second >> 32) & _MASK)
    low, high, _, _ = philox(counter, key)
    return low, high


def words(key: Key, counter: Sequence[Word]) -> Tensor:
    """Return four independent random words for every counter.

    Args:
        key: two words.
        counter: one to four words that broadcast together and with the key; missing ones are 0.

    Returns:
        `[..., 4]`, int64 in [0, 2**32); a counter made of ints alone gives `[4]`.
    """
    c0, c1, c2, c3 = (*counter, *(0,) * (4 - len(counter)))
    four = [torch.as_tensor(word) for word in philox((c0, c1, c2, c3), key)]
    return torch.stack(torch.broadcast_tensors(*four), dim=-1)


def uniform(key: Key, counter: Sequence[Word]) -> Tensor:
    """Return four independent uniform numbers in [0, 1) for every counter.

    Args:
        key: as of `words`.
        counter: as of `words`.

    Returns:
        `[..., 4]`, float64, multiples of 2**-32.
    """
    return words(key, counter).to(torch.float64) * 2.0**-32


def normal(key: Key, counter: Sequence[Word]) -> Tensor:
    """Return four independent standard normal numbers for every counter (Box-Muller).

    Args:
        key: as of `words`.
        counter: as of `words`.

    Returns:
        `[..., 4]`, float64; the largest possible magnitude is 6.7. The words behind them are the
        same everywhere; the logarithm and the cosine of another machine may differ in the last
        bit, which rounding to fp32 hides almost always.
    """
    first, second = words(key, counter).to(torch.float64).unflatten(-1, (2, 2)).unbind(-1)
    radius = torch.sqrt(-2.0 * torch.log((first + 1.0) * 2.0**-32))
    angle = second * (2.0 * math.pi * 2.0**-32)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(-2)
