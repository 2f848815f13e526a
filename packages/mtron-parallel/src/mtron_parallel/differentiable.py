"""Collectives with gradients. Each one's backward is the collective that undoes its forward.

Activations are `[batch, seq, hidden]`. In a region that is split along the sequence each rank
holds `ceil(seq / size)` tokens of every row, the last ranks padded with zeros where `size` does
not divide `seq`. Reference: Korthikanti et al., arXiv:2205.05198, section 4.2.2 (f, g and their
conjugates).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mtron_parallel.collectives import Group, gathered, scattered_sum, summed


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return summed(gradients[0], ctx.group), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return summed(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0], None


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, length: int) -> Tensor:
        ctx.group = group
        return _join(x, group, length)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        return _split_sum(gradients[0], ctx.group), None, None


class _ScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.length = group, x.shape[1]
        return _split_sum(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return _join(gradients[0], ctx.group, ctx.length), None


class _JoinSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, length: int) -> Tensor:
        ctx.group = group
        return _join(x, group, length)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        return _own_tokens(gradients[0], ctx.group), None, None


class _DivideSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.length = group, x.shape[1]
        return _own_tokens(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return _join(gradients[0], ctx.group, ctx.length), None


def copy_to(x: Tensor, group: Group) -> Tensor:
    """Use `x`, the same on all ranks, in products with parts; gradients are summed."""
    return x if group.size == 1 else _Copy.apply(x, group)  # pyright: ignore[reportReturnType]


def sum_over(x: Tensor, group: Group) -> Tensor:
    """Return the sum of the ranks' partial results; the gradient is the same for each."""
    return x if group.size == 1 else _Sum.apply(x, group)  # pyright: ignore[reportReturnType]


def gather_sequence(x: Tensor, group: Group, length: int) -> Tensor:
    """Join the ranks' tokens; gradients are summed and split again.

    Args:
        x: `[batch, ceil(length / size), ...]`, this rank's tokens.
        group: over whose ranks the sequence is split.
        length: tokens of a row without padding.

    Returns:
        `[batch, length, ...]`.
    """
    if group.size == 1:
        return x
    return _GatherSequence.apply(x, group, length)  # pyright: ignore[reportReturnType]


def scatter_sequence(x: Tensor, group: Group) -> Tensor:
    """Sum the ranks' partial results and keep this rank's tokens; gradients are joined.

    Args:
        x: `[batch, seq, ...]`, partial sums.
        group: over whose ranks the sequence is split.

    Returns:
        `[batch, ceil(seq / size), ...]`.
    """
    if group.size == 1:
        return x
    return _ScatterSequence.apply(x, group)  # pyright: ignore[reportReturnType]


def join_sequence(x: Tensor, group: Group, length: int) -> Tensor:
    """Join the ranks' tokens for what all ranks compute alike; gradients are split again.

    Args:
        x: `[batch, ceil(length / size), ...]`, this rank's tokens.
        group: over whose ranks the sequence is split.
        length: tokens of a row without padding.

    Returns:
        `[batch, length, ...]`.
    """
    if group.size == 1:
        return x
    return _JoinSequence.apply(x, group, length)  # pyright: ignore[reportReturnType]


def divide_sequence(x: Tensor, group: Group) -> Tensor:
    """Keep this rank's tokens of what all ranks have computed alike; gradients are joined.

    Args:
        x: `[batch, seq, ...]`, the same on all ranks.
        group: over whose ranks the sequence is split.

    Returns:
        `[batch, ceil(seq / size), ...]`.
    """
    if group.size == 1:
        return x
    return _DivideSequence.apply(x, group)  # pyright: ignore[reportReturnType]


def _own_tokens(x: Tensor, group: Group) -> Tensor:
    missing = -x.shape[1] % group.size
    if missing:
        x = pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
    return x.unflatten(1, (group.size, -1))[:, group.rank].contiguous()


def _join(x: Tensor, group: Group, length: int) -> Tensor:
    parts = gathered(x.contiguous(), group)
    return parts.transpose(0, 1).flatten(1, 2)[:, :length].contiguous()


def _split_sum(x: Tensor, group: Group) -> Tensor:
    missing = -x.shape[1] % group.size
    if missing:
        x = pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
    return scattered_sum(x.unflatten(1, (group.size, -1)).transpose(0, 1), group)
