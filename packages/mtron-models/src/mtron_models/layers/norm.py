"""Normalization layers."""

import torch
from torch import Tensor, nn

from mtron_models import ops


class RMSNorm(nn.Module):
    """Scales each vector to a root mean square of 1, then by a learned weight per element."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps
        self.op = ops.rms_norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `[..., size]`."""
        return self.op(x, self.weight, self.eps)


class UnitOffsetRMSNorm(nn.Module):
    """An RMSNorm whose weight is how far each factor is from 1, as in Gemma."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps
        self.op = ops.unit_offset_rms_norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `[..., size]`."""
        return self.op(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Moves each vector to mean 0 and standard deviation 1, then scales and shifts elements."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))
        self.eps = eps
        self.op = ops.layer_norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `[..., size]`."""
        return self.op(x, self.weight, self.bias, self.eps)
