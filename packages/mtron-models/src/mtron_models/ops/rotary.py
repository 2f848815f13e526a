"""Rotary position embedding: queries and keys turn by angles that grow with the position."""

import torch
from torch import Tensor


def rotary_table(
    positions: Tensor, frequencies: Tensor, dtype: torch.dtype, amplitude: float = 1.0
) -> Tensor:
    """Return `cos`, `-sin` and `sin` of the angles by which `rotary` turns.

    Args:
        positions: `[S]` or `[B, S]`, integers.
        frequencies: `[R/2]`, angle of each pair per position (of `rope.frequencies`).
        dtype: of the table; fp32 or fp64.
        amplitude: factor of all three (YaRN's attention factor).

    Returns:
        `[S, 1, 3, R/2]` or `[B, S, 1, 3, R/2]`. One tensor, so that a compiler computes it once
        and not again in every layer.

    Reference: Su et al., arXiv:2104.09864, section 3.2.2.
    """
    angles = positions.to(dtype)[..., None, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    if amplitude != 1.0:
        cos, sin = cos * amplitude, sin * amplitude
    return torch.stack((cos, -sin, sin), dim=-2)


def rotary(x_BSNH: Tensor, table: Tensor) -> Tensor:
    """Turn every head by the angles of its token's position; computed in at least fp32.

    Element `i` of the first half of what is turned and element `i` of the second form a pair.

    Args:
        x_BSNH: queries or keys. Where the table is for fewer than `H` elements, the last ones are
            not turned.
        table: of `rotary_table`, for the same tokens.

    Returns:
        `[B, S, N, H]` in the dtype of `x_BSNH`.
    """
    turned, rest = _split(x_BSNH, table)
    halves = turned.to(table.dtype).unflatten(-1, (2, -1))
    turned = torch.addcmul(halves * table[..., :1, :], halves.flip(-2), table[..., 1:, :])
    return _join(turned.flatten(-2).to(x_BSNH.dtype), rest)


def rotary_interleaved(x_BSNH: Tensor, table: Tensor) -> Tensor:
    """Turn as `rotary` does, with neighbouring elements `2 i` and `2 i + 1` as a pair.

    Args:
        x_BSNH: as of `rotary`.
        table: as of `rotary`.

    Returns:
        As `rotary`.
    """
    turned, rest = _split(x_BSNH, table)
    even, odd = turned.to(table.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    cos, _, sin = table.unbind(-2)
    pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return _join(pairs.flatten(-2).to(x_BSNH.dtype), rest)


def _split(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the elements that are turned, and those that are not."""
    width = 2 * table.shape[-1]
    if width == x.shape[-1]:
        return x, None
    return x[..., :width], x[..., width:]


def _join(turned: Tensor, rest: Tensor | None) -> Tensor:
    return turned if rest is None else torch.cat((turned, rest), dim=-1)
