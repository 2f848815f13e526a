"""Feed-forward layers."""

from collections.abc import Callable

from torch import Tensor, nn

from mtron_models import ops


class GatedMLP(nn.Module):
    """The feed-forward layer `down(op(gate(x), up(x)))`.

    Args:
        hidden_size: width of the residual stream.
        intermediate_size: width between the projections.
        op: from gate and up to what goes down, such as `ops.swiglu`.
        bias: whether the projections have biases.

    Reference: Shazeer, arXiv:2002.05202.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        op: Callable[[Tensor, Tensor], Tensor] = ops.swiglu,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        """Transform `[..., hidden]`, each token by itself."""
        return self.down_proj(self.op(self.gate_proj(x), self.up_proj(x)))


class MLP(nn.Module):
    """The feed-forward layer `down(op(up(x)))`.

    Args:
        hidden_size: width of the residual stream.
        intermediate_size: width between the projections.
        op: the activation, such as `ops.gelu`.
        bias: whether the projections have biases.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        op: Callable[[Tensor], Tensor],
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        """Transform `[..., hidden]`, each token by itself."""
        return self.down_proj(self.op(self.up_proj(x)))
