"""Rotary position embedding."""

import torch
from torch import Tensor, nn

from mtron_models import ops
from mtron_models.rope import RopeScaling, frequencies


class RotaryTable(nn.Module):
    """Makes the table of a forward pass, which its layers share. Has no parameter.

    Args:
        rotary_dim: how many elements of a head are turned, even.
        theta: base of the frequencies.
        scaling: for longer sequences.
        max_position_embeddings: longest sequence that the model is meant for.
    """

    def __init__(
        self,
        rotary_dim: int,
        theta: float,
        scaling: RopeScaling | None = None,
        max_position_embeddings: int = 0,
    ) -> None:
        super().__init__()
        self.rotary_dim = rotary_dim
        self.theta = theta
        self.scaling = scaling
        self.max_position_embeddings = max_position_embeddings
        self.op = ops.rotary_table

    def forward(self, hidden_BSD: Tensor, positions: Tensor | None) -> Tensor:
        """Return the table for `positions`, or for 0, 1, ... where there are none.

        Args:
            hidden_BSD: only its length, device and dtype count; the table has at least fp32.
            positions: `[B, S]` or `[S]`, int64, or None.

        Returns:
            cos, -sin and sin of the angles, `[B, S, 1, 3, R/2]` or `[S, 1, 3, R/2]`.
        """
        if positions is None:
            positions = torch.arange(hidden_BSD.shape[1], device=hidden_BSD.device)
        dtype = ops.at_least_fp32(hidden_BSD.dtype)
        is_dynamic = self.scaling is not None and self.scaling.rope_type == "dynamic"
        turns = frequencies(
            torch.arange(0, self.rotary_dim, 2, dtype=dtype, device=positions.device),
            self.theta,
            self.scaling,
            self.max_position_embeddings,
            positions.max() + 1 if is_dynamic else 0,
        )
        amplitude = 1.0 if self.scaling is None else self.scaling.amplitude()
        return self.op(positions, turns, dtype, amplitude)


class Rotary(nn.Module):
    """Turns queries or keys by the angles of their positions. Has no parameter.

    Args:
        interleaved: whether neighbouring elements form a pair, instead of those of two halves.
    """

    def __init__(self, interleaved: bool = False) -> None:
        super().__init__()
        self.op = ops.rotary_interleaved if interleaved else ops.rotary

    def forward(self, x_BSNH: Tensor, table: Tensor) -> Tensor:
        """Rotate `[batch, seq, heads, head_dim]`."""
        return self.op(x_BSNH, table)
