"""Relative positions in buckets: near ones apart, far ones together."""

import math

import torch
from torch import Tensor


def relative_buckets(
    distance: Tensor, num_buckets: int, max_distance: int, *, bidirectional: bool
) -> Tensor:
    """Return the bucket of every distance.

    Half of the buckets are for single distances, from 0 on. The others grow with the logarithm of
    the distance, and the last one takes all from `max_distance` on.

    Args:
        distance: place of the key minus place of the query, integers of any shape.
        num_buckets: how many there are; for both directions, half of them for each.
        max_distance: from here on distances are not told apart.
        bidirectional: whether keys come after queries too; otherwise these share bucket 0.

    Returns:
        int64 of the same shape, in [0, num_buckets).

    Reference: Raffel et al., arXiv:1910.10683, section 2.1.
    """
    first = torch.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        first = (distance > 0).to(distance.dtype) * num_buckets
        away = distance.abs()
    else:
        away = (-distance).clamp(min=0)
    single = num_buckets // 2
    # In fp32 as where the published models were trained: a distance on the edge of two buckets
    # may round into another one otherwise.
    growth = torch.log(away.clamp(min=1).to(torch.float32) / single)
    growth = growth / math.log(max_distance / single) * (num_buckets - single)
    far = (single + growth.to(torch.int64)).clamp(max=num_buckets - 1)
    return first + torch.where(away < single, away, far)
