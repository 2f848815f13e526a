"""Feed-forward layers of many experts, each on its own rows.

Shape suffixes: T tokens, K experts per token, R rows sorted by expert, D hidden, E experts,
I width of an expert.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


def spread_tokens(x_TD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
    """Return the token of every row, `[R, D]`.

    Args:
        x_TD: tokens.
        token_R: token of each row, int64.
        row_TK: the rows of each token, int64; every row stands there once.
    """
    return _Spread.apply(x_TD, token_R, row_TK)


def sum_rows(y_RD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
    """Return the sum of every token's rows, `[T, D]`: the adjoint of `spread_tokens`.

    Args:
        y_RD: rows.
        token_R: as of `spread_tokens`.
        row_TK: as of `spread_tokens`.
    """
    return _Sum.apply(y_RD, token_R, row_TK)


class _Spread(torch.autograd.Function):
    """Autograd's own backward would add row by row, and could not know that each occurs once."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(row_TK)
        return x_TD.index_select(0, token_R)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (row_TK,) = ctx.saved_tensors
        return _summed(gradients[0], row_TK), None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(token_R)
        return _summed(y_RD, row_TK)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (token_R,) = ctx.saved_tensors
        return gradients[0].index_select(0, token_R), None, None


def _summed(y_RD: Tensor, row_TK: Tensor) -> Tensor:
    """Return `y_RD[row_TK].sum(1)` without making `[T, K, D]`."""
    return F.embedding_bag(row_TK, y_RD, mode="sum")


def expert_mlp(
    x_RD: Tensor, weights_R: Tensor, counts_E: Tensor, gate: Tensor, up: Tensor, down: Tensor
) -> Tensor:
    """Return `weight * down(silu(gate(x)) * up(x))` of every row by its expert.

    Args:
        x_RD: rows, those of the first expert first.
        weights_R: factor of each row.
        counts_E: rows of each expert, int64; rows beyond their sum belong to none.
        gate: `[E, I, D]`.
        up: `[E, I, D]`.
        down: `[E, D, I]`.

    Returns:
        `[R, D]`; 0 in rows that belong to no expert.
    """
    if x_RD.is_cuda and x_RD.dtype == torch.bfloat16 and hasattr(F, "grouped_mm"):
        return _by_grouped_products(x_RD, weights_R, counts_E, gate, up, down)
    keep = torch.is_grad_enabled()
    return _expert_mlp(x_RD, weights_R, counts_E, gate, up, down, keep)[0]


def _by_grouped_products(
    x_RD: Tensor, weights_R: Tensor, counts_E: Tensor, gate: Tensor, up: Tensor, down: Tensor
) -> Tensor:
    """Three products for all experts at once: one kernel each, and no size is read back."""
    ends_E = counts_E.cumsum(0).to(torch.int32)
    # Rows of no expert are left as they were found, in both directions: hence the two masks.
    is_used = (torch.arange(len(x_RD), device=x_RD.device) < ends_E[-1])[:, None]
    x_RD = torch.where(is_used, x_RD, 0)
    inner = F.silu(F.grouped_mm(x_RD, gate.mT, offs=ends_E))
    inner = inner * F.grouped_mm(x_RD, up.mT, offs=ends_E)
    inner = torch.where(is_used, inner * weights_R[:, None].to(inner.dtype), 0)
    return torch.where(is_used, F.grouped_mm(inner, down.mT, offs=ends_E), 0)


def _rows(counts_E: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield every expert and its rows."""
    begin = 0
    for expert, count in enumerate(counts_E.tolist()):
        yield expert, slice(begin, begin + count)
        begin += count


@torch.library.custom_op("mtron::expert_mlp", mutates_args=())
def _expert_mlp(
    x_RD: Tensor,
    weights_R: Tensor,
    counts_E: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows' results and, if `keep`, their gates and ups for the backward.

    One expert after the other, so that what lies between its products stays in the cache. An op of
    its own, because a compiler cannot follow sizes that depend on the data.
    """
    width = gate.shape[1] if keep else 0
    gates, ups = x_RD.new_empty(len(x_RD), width), x_RD.new_empty(len(x_RD), width)
    y_RD = torch.empty_like(x_RD)
    end = 0
    for expert, rows in _rows(counts_E):
        x = x_RD[rows]
        g, u = (gates[rows], ups[rows]) if keep else (None, None)
        g, u = torch.mm(x, gate[expert].t(), out=g), torch.mm(x, up[expert].t(), out=u)
        inner = F.silu(g).mul_(u).mul_(weights_R[rows, None].to(x.dtype))
        torch.mm(inner, down[expert].t(), out=y_RD[rows])
        end = rows.stop
    y_RD[end:] = 0
    return y_RD, gates, ups


@torch.library.custom_op("mtron::expert_mlp_backward", mutates_args=())
def _expert_mlp_backward(
    dy_RD: Tensor,
    x_RD: Tensor,
    weights_R: Tensor,
    counts_E: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    gates: Tensor,
    ups: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of rows, weights and the three stacks, each written once in place."""
    dx_RD, dweights_R = torch.empty_like(x_RD), torch.empty_like(weights_R)
    dgate, dup, ddown = torch.empty_like(gate), torch.empty_like(up), torch.empty_like(down)
    end = 0
    for expert, rows in _rows(counts_E):
        x, dy, g, u = x_RD[rows], dy_RD[rows], gates[rows], ups[rows]
        weight = weights_R[rows, None].to(x.dtype)
        activated = F.silu(g)
        inner = activated * u
        dinner = torch.mm(dy, down[expert])
        dweights_R[rows] = (dinner * inner).sum(dim=1, dtype=weights_R.dtype)
        torch.mm(dy.t(), inner.mul_(weight), out=ddown[expert])
        dinner.mul_(weight)
        du = activated.mul_(dinner)
        dg = torch.ops.aten.silu_backward(dinner.mul_(u), g)
        torch.mm(dg.t(), x, out=dgate[expert])
        torch.mm(du.t(), x, out=dup[expert])
        torch.mm(dg, gate[expert], out=dx_RD[rows]).addmm_(du, up[expert])
        end = rows.stop
    dx_RD[end:], dweights_R[end:] = 0, 0
    return dx_RD, dweights_R, dgate, dup, ddown


@_expert_mlp.register_fake
def _fake(
    x_RD: Tensor,
    weights_R: Tensor,
    counts_E: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a compiler must know of the outputs."""
    del weights_R, counts_E, up, down
    between = x_RD.new_empty(len(x_RD), gate.shape[1] if keep else 0)
    return torch.empty_like(x_RD), between, torch.empty_like(between)


@_expert_mlp_backward.register_fake
def _fake_backward(dy_RD: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return what a compiler must know of the gradients."""
    del dy_RD
    x_RD, weights_R, _, gate, up, down, *_ = inputs
    return tuple(torch.empty_like(tensor) for tensor in (x_RD, weights_R, gate, up, down))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, keep = inputs
    assert keep, "a backward needs what the forward kept"
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy_RD: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
    del unused
    if dy_RD is None:
        return (None,) * 7
    dx_RD, dweights_R, *stacks = _expert_mlp_backward(dy_RD.contiguous(), *ctx.saved_tensors)
    return dx_RD, dweights_R, None, *stacks, None


_expert_mlp.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.mtron.expert_mlp)
def _operations(*shapes: Any, **_: Any) -> int:
    """Three products of every row."""
    (rows, hidden), (_, width, _) = shapes[0], shapes[3]
    return 6 * rows * hidden * width


@register_flop_formula(torch.ops.mtron.expert_mlp_backward)
def _operations_backward(*shapes: Any, **_: Any) -> int:
    """Two products for each of the forward."""
    return 2 * _operations(*shapes[1:])
