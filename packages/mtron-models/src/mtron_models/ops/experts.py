"""Feed-forward layers of many experts, each on its own tokens.

Shape suffixes: N tokens that are here, R choices sorted by expert, D hidden, E experts, I width of
an expert.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mtron_models.ops.numbers import at_least_fp32


def expert_mlp(
    x_ND: Tensor,
    token_R: Tensor,
    weights_R: Tensor,
    counts_E: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
) -> Tensor:
    """Return for every token the sum of `weight * down(silu(gate(x)) * up(x))` of its experts.

    Args:
        x_ND: tokens.
        token_R: the token of each choice, those of the first expert first, int64.
        weights_R: factor of each choice.
        counts_E: how many choices each expert has, int64; the choices after the first
            `counts_E.sum()` were turned away, and add nothing.
        gate: `[E, I, D]`.
        up: `[E, I, D]`.
        down: `[E, D, I]`.

    Returns:
        `[N, D]`; 0 for tokens without an expert.
    """
    if x_ND.is_cuda and x_ND.dtype == torch.bfloat16 and hasattr(F, "grouped_mm"):
        return _by_grouped_products(x_ND, token_R, weights_R, counts_E, gate, up, down)
    keep = torch.is_grad_enabled()
    return _expert_mlp(x_ND, token_R, weights_R, counts_E, gate, up, down, keep)[0]


def _by_grouped_products(
    x_ND: Tensor,
    token_R: Tensor,
    weights_R: Tensor,
    counts_E: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
) -> Tensor:
    """Three products for all experts at once: one kernel each, and no size is read back."""
    ends_E = counts_E.cumsum(0).to(torch.int32)
    is_used = (torch.arange(len(token_R), device=x_ND.device) < ends_E[-1])[:, None]

    def product(rows: Tensor, stack: Tensor) -> Tensor:
        # Rows of no expert are left as they were found, in the forward and in the backward.
        rows = torch.where(is_used, rows, 0)
        return torch.where(is_used, F.grouped_mm(rows, stack.mT, offs=ends_E), 0)

    x_RD = x_ND[token_R]
    inner = F.silu(product(x_RD, gate)) * product(x_RD, up)
    y_RD = product(inner * weights_R[:, None].to(inner.dtype), down)
    total = x_ND.new_zeros(x_ND.shape, dtype=at_least_fp32(x_ND.dtype))
    return total.index_add(0, token_R, y_RD.to(total.dtype)).to(x_ND.dtype)


def _experts(counts_E: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield every expert and its choices."""
    begin = 0
    for expert, count in enumerate(counts_E.tolist()):
        yield expert, slice(begin, begin + count)
        begin += count


@torch.library.custom_op("mtron::expert_mlp", mutates_args=())
def _expert_mlp(
    x_ND: Tensor,
    token_R: Tensor,
    weights_R: Tensor,
    counts_E: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens' sums and, if `keep`, all gates and ups for the backward.

    One expert after the other, so that its tokens and what lies between its products stay in the
    cache, and never exist for all choices. An op of its own, because a compiler cannot follow
    sizes that depend on the data.
    """
    width = gate.shape[1] if keep else 0
    gates, ups = (x_ND.new_empty(len(token_R), width) for _ in range(2))
    total = x_ND.new_zeros(x_ND.shape, dtype=at_least_fp32(x_ND.dtype))
    for expert, rows in _experts(counts_E):
        token = token_R[rows]
        x = x_ND.index_select(0, token)
        g, u = (gates[rows], ups[rows]) if keep else (None, None)
        g, u = torch.mm(x, gate[expert].t(), out=g), torch.mm(x, up[expert].t(), out=u)
        y = torch.mm(F.silu(g).mul_(u), down[expert].t())
        total.index_add_(0, token, y.to(total.dtype).mul_(weights_R[rows, None]))
    return total.to(x_ND.dtype), gates, ups


@torch.library.custom_op("mtron::expert_mlp_backward", mutates_args=())
def _expert_mlp_backward(
    dy_ND: Tensor,
    x_ND: Tensor,
    token_R: Tensor,
    weights_R: Tensor,
    counts_E: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    gates: Tensor,
    ups: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of tokens, weights and the three stacks, each written in place."""
    dx_ND = x_ND.new_zeros(x_ND.shape, dtype=at_least_fp32(x_ND.dtype))
    dweights_R = torch.zeros_like(weights_R)
    dgate, dup, ddown = torch.empty_like(gate), torch.empty_like(up), torch.empty_like(down)
    for expert, rows in _experts(counts_E):
        token, g, u = token_R[rows], gates[rows], ups[rows]
        x, dy = x_ND.index_select(0, token), dy_ND.index_select(0, token)
        # The weight multiplies what is D wide rather than I wide, which is usually less.
        weight = weights_R[rows, None].to(x.dtype)
        activated = F.silu(g)
        inner = activated * u
        dinner = torch.mm(dy, down[expert])
        dweights_R[rows] = (dinner * inner).sum(dim=1, dtype=weights_R.dtype)
        torch.mm((dy * weight).t(), inner, out=ddown[expert])
        du = activated.mul_(dinner)
        dg = torch.ops.aten.silu_backward(dinner.mul_(u), g)
        weighted_x = x * weight
        torch.mm(dg.t(), weighted_x, out=dgate[expert])
        torch.mm(du.t(), weighted_x, out=dup[expert])
        dx = torch.mm(dg, gate[expert]).addmm_(du, up[expert])
        dx_ND.index_add_(0, token, dx.mul_(weight).to(dx_ND.dtype))
    return dx_ND.to(x_ND.dtype), dweights_R, dgate, dup, ddown


@_expert_mlp.register_fake
def _fake(
    x_ND: Tensor,
    token_R: Tensor,
    weights_R: Tensor,
    counts_E: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a compiler must know of the outputs."""
    del weights_R, counts_E, up, down
    between = x_ND.new_empty(len(token_R), gate.shape[1] if keep else 0)
    return torch.empty_like(x_ND), between, torch.empty_like(between)


@_expert_mlp_backward.register_fake
def _fake_backward(dy_ND: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return what a compiler must know of the gradients."""
    del dy_ND
    x_ND, _, weights_R, _, gate, up, down, *_ = inputs
    return tuple(torch.empty_like(tensor) for tensor in (x_ND, weights_R, gate, up, down))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, keep = inputs
    assert keep, "a backward needs what the forward kept"
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy_ND: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
    del unused
    if dy_ND is None:
        return (None,) * 8
    dx_ND, dweights_R, *stacks = _expert_mlp_backward(dy_ND, *ctx.saved_tensors)
    return dx_ND, None, dweights_R, None, *stacks, None


_expert_mlp.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.mtron.expert_mlp)
def _operations(*shapes: Any, **_: Any) -> int:
    """Three products of every choice."""
    (choices,), (_, width, hidden) = shapes[1], shapes[4]
    return 6 * choices * hidden * width


@register_flop_formula(torch.ops.mtron.expert_mlp_backward)
def _operations_backward(*shapes: Any, **_: Any) -> int:
    """Two products for each of the forward."""
    return 2 * _operations(*shapes[1:])
