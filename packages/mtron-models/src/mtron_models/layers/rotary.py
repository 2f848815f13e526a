"""Rotary position embedding."""

import torch
from torch import Tensor, nn

from mtron_models import ops


class RotaryTable(nn.Module):
    """Makes the table of a forward pass, which all its layers share. Has no parameter."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta
        self.op = ops.rotary_table

    def forward(self, hidden_BSD: Tensor, positions: Tensor | None) -> Tensor:
        """Return the table for `positions`, or for 0, 1, ... where there are none.

        Args:
            hidden_BSD: only its length, device and dtype count; the table has at least fp32.
            positions: `[B, S]`, int64, or None.
        """
        if positions is None:
            positions = torch.arange(hidden_BSD.shape[1], device=hidden_BSD.device)
        dtype = ops.at_least_fp32(hidden_BSD.dtype)
        return self.op(positions, self.head_dim, self.theta, dtype)


class Rotary(nn.Module):
    """Turns queries or keys by the angles of their positions. Has no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.op = ops.rotary

    def forward(self, x_BSNH: Tensor, table: Tensor) -> Tensor:
        """Rotate `[batch, seq, heads, head_dim]`."""
        return self.op(x_BSNH, table)
