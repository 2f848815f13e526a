"""Attention layers."""

from collections.abc import Callable

from torch import Tensor, nn

from mtron_models import ops
from mtron_models.context import Context
from mtron_models.layers.rotary import Rotary


class Attention(nn.Module):
    """Causal self-attention with rotary positions, in which query heads may share keys and values.

    `core(q, k, v, context)` is the seam at which caches, context parallelism and kernels attach:
    it takes the rotated queries and keys and the values of the tokens of this call,
    `[batch, heads, seq, head_dim]`, and returns what the queries attended to. How many heads
    there are is read from the projections, which may be cut to a part of them.

    Reference: Ainslie et al., arXiv:2305.13245 (grouped queries).
    """

    def __init__(self, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)
        self.rotary = Rotary()
        self.core: Callable[[Tensor, Tensor, Tensor, Context], Tensor] = ops.causal_attention

    def forward(self, x_BSD: Tensor, table: Tensor, context: Context) -> Tensor:
        """Let tokens attend to each other.

        Args:
            x_BSD: `[batch, seq, hidden]`.
            table: of `RotaryTable`, for the tokens' positions.
            context: handed to the core.

        Returns:
            `[batch, seq, hidden]`.
        """
        q, k, v = (
            projection(x_BSD).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self.rotary(q, table), self.rotary(k, table)
        attended = self.core(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), context)
        return self.o_proj(attended.transpose(1, 2).flatten(-2))
