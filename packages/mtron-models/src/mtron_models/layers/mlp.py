"""Feed-forward layers."""

from torch import Tensor, nn

from mtron_models import ops


class SwiGLU(nn.Module):
    """The feed-forward layer `down(silu(gate(x)) * up(x))`."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)
        self.op = ops.swiglu

    def forward(self, x: Tensor) -> Tensor:
        """Transform `[..., hidden]`, each token by itself."""
        return self.down_proj(self.op(self.gate_proj(x), self.up_proj(x)))
