"""Normalization."""

import torch
from torch import Tensor

from mtron_models.ops.numbers import at_least_fp32


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each vector to a root mean square of 1, then by a weight per element.

    Args:
        x: `[..., D]`; computed in at least fp32.
        weight: `[D]`.
        eps: added to the mean square.

    Returns:
        `[..., D]` in the dtype of `x`.

    Reference: Zhang and Sennrich, arXiv:1910.07467, equation 4.
    """
    return (x * _inverse_rms(x, eps)).to(x.dtype) * weight


def unit_offset_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each vector to a root mean square of 1, then by 1 + a weight per element (Gemma).

    Unlike in `rms_norm` the product with the weight comes before the rounding to the dtype of `x`.

    Args:
        x: `[..., D]`; computed in at least fp32.
        weight: `[D]`, how far the factors are from 1.
        eps: added to the mean square.

    Returns:
        `[..., D]` in the dtype of `x`.

    Reference: Gemma Team, arXiv:2408.00118, section 2; the 1 is in their published code only.
    """
    inverse = _inverse_rms(x, eps)
    return (x * inverse * (1.0 + weight.to(inverse.dtype))).to(x.dtype)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Return 1 / the root of the mean square of each vector, `[..., 1]`, at least fp32."""
    dtype = at_least_fp32(x.dtype)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return torch.rsqrt(norm.square() / x.shape[-1] + eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Subtract each vector's mean, divide by its standard deviation, then scale and shift.

    Args:
        x: `[..., D]`; computed in at least fp32.
        weight: `[D]`.
        bias: `[D]`, or None for no shift.
        eps: added to the variance.

    Returns:
        `[..., D]` in the dtype of `x`.

    Reference: Ba et al., arXiv:1607.06450, equation 4.
    """
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps)
