"""Attention to another sequence."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from mtron_models import ops
from mtron_models.attention_spec import AttentionSpec
from mtron_models.context import Context
from mtron_models.layers.attention import randomness_of_mode
from mtron_models.random import key_of

EVERYTHING = AttentionSpec(causal=False)


class CrossAttention(nn.Module):
    """Attention of one sequence's tokens to those of another, the memory.

    `core(q, k, v, context)` is the seam at which caches and kernels attach, as in `Attention`.
    Keys and values are those of the memory, or None where the memory was not given: a core that
    keeps them in `context.caches` then takes what an earlier call has computed.

    Args:
        hidden_size: width of the residual stream and of the memory.
        num_heads: heads of queries, keys and values.
        head_dim: width of a head.
        spec: how tokens attend; not causal, and without a window.
        site: name of this place in the model, for dropout of attention weights.

    Reference: Vaswani et al., arXiv:1706.03762, section 3.2.3.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        *,
        spec: AttentionSpec = EVERYTHING,
        site: str = "",
    ) -> None:
        super().__init__()
        if spec.causal or spec.window is not None:
            raise ValueError(
                "spec: tokens have no order relative to another sequence, got "
                f"causal = {spec.causal}, window = {spec.window}; use causal=False and no window"
            )
        if spec.dropout and not site:
            raise ValueError(
                f"site: needed with spec.dropout = {spec.dropout}, got {site!r}; "
                "give the name of this place in the model"
            )
        self.head_dim = head_dim
        self.spec = spec
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)
        self.core: Callable[[Tensor, Tensor | None, Tensor | None, Context], Tensor] = partial(
            ops.cross_attention, spec=spec, site=key_of(f"dropout/{site}.core") if site else None
        )

    def forward(self, x_BSD: Tensor, memory_BTD: Tensor | None, context: Context) -> Tensor:
        """Let tokens attend to the memory.

        Args:
            x_BSD: `[batch, seq, hidden]`.
            memory_BTD: `[batch, memory_seq, hidden]`; None to use keys and values that an attached
                core has kept.
            context: handed to the core.

        Returns:
            `[batch, seq, hidden]`.
        """
        q, k, v = self._heads(self.q_proj, x_BSD), None, None
        if memory_BTD is not None:
            k, v = self._heads(self.k_proj, memory_BTD), self._heads(self.v_proj, memory_BTD)
        if self.spec.dropout:
            context = randomness_of_mode(context, self.training)
        attended = self.core(q, k, v, context)
        return self.o_proj(attended.transpose(1, 2).flatten(-2))

    def _heads(self, projection: nn.Linear, x_BSD: Tensor) -> Tensor:
        """Project, and cut into heads: `[batch, heads, seq, head_dim]`."""
        return projection(x_BSD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
