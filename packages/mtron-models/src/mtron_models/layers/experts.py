"""Many feed-forward layers of one shape, each for its own tokens."""

import torch
from torch import Tensor, nn

from mtron_models import ops


class Experts(nn.Module):
    """The feed-forward layers `down(silu(gate(x)) * up(x))` of several experts, stacked.

    How many experts there are is read from the parameters, which may be cut to a part of them.

    Args:
        num_experts: E.
        hidden_size: D, width of a token.
        intermediate_size: I, width of an expert between its projections.
    """

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(num_experts, intermediate_size, hidden_size))
        self.up_proj = nn.Parameter(torch.empty(num_experts, intermediate_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))
        self.op = ops.expert_mlp

    def forward(self, x_ND: Tensor, token_R: Tensor, weights_R: Tensor, counts_E: Tensor) -> Tensor:
        """Return for every token the weighted sum of what its experts make of it.

        Args:
            x_ND: tokens, `[tokens, hidden]`.
            token_R: the token of each choice, those of the first expert first, int64.
            weights_R: factor of each choice.
            counts_E: how many choices each expert has, int64; the choices after the first
                `counts_E.sum()` were turned away.

        Returns:
            `[tokens, hidden]`.
        """
        stacks = (self.gate_proj, self.up_proj, self.down_proj)
        return self.op(x_ND, token_R, weights_R, counts_E, *stacks)
