"""Attention layers."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from mtron_models import ops
from mtron_models.attention_spec import AttentionSpec
from mtron_models.context import Context
from mtron_models.layers.rotary import Rotary
from mtron_models.random import key_of

CAUSAL = AttentionSpec()


class Attention(nn.Module):
    """Self-attention in which query heads may share keys and values.

    `core(q, k, v, context)` is the seam at which caches, context parallelism and kernels attach:
    it takes the rotated queries and keys and the values of the tokens of this call,
    `[batch, heads, seq, head_dim]`, and returns what the queries attended to. What it must do
    beyond that stands in `spec`. How many heads there are is read from the projections, which may
    be cut to a part of them.

    Args:
        hidden_size: width of the residual stream.
        num_heads: query heads.
        num_kv_heads: key and value heads, each shared by a group of query heads.
        head_dim: width of a head.
        spec: which tokens attend to which, and how.
        bias: whether the projections of queries, keys and values have biases.
        output_bias: whether the output projection has one.
        head_norm: makes the norm of a query or key head, if there are such (QK-norm).
        site: name of this place in the model; needed where `spec` has dropout. The reference core
            counts heads from 0 for its mask; who gives this module the heads from `n` on sets
            `core` to `partial(core, first_head=n)`.

    Reference: Ainslie et al., arXiv:2305.13245 (grouped queries); Henry et al., arXiv:2010.04245
    (QK-norm).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        spec: AttentionSpec = CAUSAL,
        bias: bool = False,
        output_bias: bool = False,
        head_norm: Callable[[int], nn.Module] | None = None,
        site: str = "",
    ) -> None:
        super().__init__()
        if spec.dropout and not site:
            raise ValueError(
                f"site: needed with spec.dropout = {spec.dropout}, got {site!r}; "
                "give the name of this place in the model"
            )
        self.head_dim = head_dim
        self.spec = spec
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=output_bias)
        self.q_norm = nn.Identity() if head_norm is None else head_norm(head_dim)
        self.k_norm = nn.Identity() if head_norm is None else head_norm(head_dim)
        self.rotary = Rotary()
        self.core: Callable[..., Tensor] = partial(
            ops.attention, spec=spec, site=key_of(f"dropout/{site}.core") if site else None
        )

    def forward(
        self, x_BSD: Tensor, table: Tensor | None, context: Context, bias: Tensor | None = None
    ) -> Tensor:
        """Let tokens attend to each other.

        Args:
            x_BSD: `[batch, seq, hidden]`.
            table: of `RotaryTable`, for the tokens' positions; None where they are not rotary.
            context: handed to the core.
            bias: added to the scores, `[batch or 1, heads, seq, keys]`; where there is one, the
                core gets it by this name.

        Returns:
            `[batch, seq, hidden]`.
        """
        q, k, v = (
            projection(x_BSD).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if table is not None:
            q, k = self.rotary(q, table), self.rotary(k, table)
        if self.spec.dropout:
            context = randomness_of_mode(context, self.training)
        named = {} if bias is None else {"bias": bias}
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        attended = self.core(q, k, v, context, **named)
        return self.o_proj(attended.transpose(1, 2).flatten(-2))


def randomness_of_mode(context: Context, training: bool) -> Context:
    """Return the context with randomness while training, and without it otherwise.

    Args:
        context: of the forward pass.
        training: whether the layer is, which drops attention weights.

    Raises:
        ValueError: it is, and the context has no random key.
    """
    if not training:
        return replace(context, random=None)
    if context.random is None:
        raise ValueError(
            "context.random: needed for training with dropout of attention weights, got None; "
            "give RandomKey(seed, step, sample_ids)"
        )
    return context
