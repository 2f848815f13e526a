"""Dividing parameters over data-parallel ranks: buckets, shards and their placements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mtron_parallel.buckets import (
    AllReduceBucket,
    Bucket,
    InFlight,
    ReduceScatterBucket,
    ShardedBucket,
    Views,
)
from mtron_parallel.collectives import Group
from mtron_parallel.flat import FlatLayout, plan_layouts, rows_of
from mtron_parallel.gradients import BucketedGradients, Trained, accumulation_dtype
from mtron_parallel.local import LocalParameter
from mtron_parallel.placement import ParameterShard, Placement, pieces_of
from mtron_parallel.weights import Weights


@dataclass(frozen=True)
class _Planned:
    """Parameters that go into one bucket."""

    trained: tuple[Trained, ...]
    layout: FlatLayout

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The module's own."""
        return [entry.parameter for entry in self.trained]


@dataclass(frozen=True)
class Sharded:
    """A model's parameters, divided over data-parallel ranks.

    Attributes:
        shards: what this rank updates, in the model's order.
        gradients: collects them.
        weights: flat weights by bucket, in the order in which a forward pass needs them; none
            where every rank updates all.
    """

    shards: list[ParameterShard]
    gradients: BucketedGradients
    weights: list[Weights]


def divide(
    local: Mapping[str, LocalParameter],
    trained: Sequence[Trained],
    group: Group,
    zero: int,
    bucket_bytes: int,
    overlap: bool,
) -> Sharded:
    """Divide gradients, and from ZeRO-1 on what the optimizer updates, over a group.

    Args:
        local: all parameters by name, with values.
        trained: those that get gradients, in the model's order.
        group: data-parallel ranks.
        zero: 0, 1 or 2.
        bucket_bytes: gradient bytes per bucket.
        overlap: whether the backward goes on while gradients are on their way.
    """
    planned = _plan(trained, group.size, bucket_bytes)
    buckets: list[Bucket] = []
    weights: list[Weights] = []
    shards: dict[str, ParameterShard] = {}
    in_flight = InFlight(limit=1 if overlap else 0)
    for plan in planned:
        partial, dtype = plan.trained[0].partial, accumulation_dtype(plan.parameters[0])
        arguments = (plan.parameters, plan.layout, group, partial, dtype)
        if zero == 0:
            buckets.append(AllReduceBucket(*arguments))
            continue
        bucket = (
            ReduceScatterBucket(*arguments) if zero == 1 else ShardedBucket(*arguments, in_flight)
        )
        flat = Weights(plan.parameters, plan.layout, group)
        shards |= _owned(plan, local, group.rank, flat.segment, bucket.owned)
        buckets.append(bucket)
        weights.insert(0, flat)
    divided = {entry.name for entry in trained} if zero else set[str]()
    for name, entry in local.items():
        if name not in divided:  # every rank updates it, or nobody does
            shards[name] = whole_shard(entry, group.rank)
    ordered = [shards[name] for name in local if name in shards]
    # Divided gradients are not whole on any rank for longer than they have to be.
    gradients = BucketedGradients(buckets, zero == 2, overlap or zero == 2)
    return Sharded(ordered, gradients, weights)


def whole_shard(local: LocalParameter, data_rank: int = 0) -> ParameterShard:
    """Return a shard that is all of what the module holds.

    Args:
        local: the parameter.
        data_rank: number of this rank among data-parallel ones that hold the same.
    """
    count, _ = rows_of(local.cut.shape)
    pieces = pieces_of(local.cut, 0, count)
    placement = Placement(
        local.global_shape,
        local.parameter.dtype,
        tuple(piece.block for piece in pieces),
        replica=data_rank * local.cut.replicas + local.cut.replica,
    )
    return ParameterShard(local.name, local.parameter, placement, pieces)


def _plan(trained: Sequence[Trained], ranks: int, bucket_bytes: int) -> list[_Planned]:
    """Put parameters into buckets, in the reverse of the model's order.

    A bucket has one element type, and one group over which its gradients are partial.
    """
    kinds: dict[tuple[torch.dtype, Group | None], list[Trained]] = {}
    for entry in reversed(trained):
        kinds.setdefault((entry.parameter.dtype, entry.partial), []).append(entry)
    planned = []
    for (dtype, _), entries in kinds.items():
        itemsize = torch.promote_types(dtype, torch.float32).itemsize
        tensors = [rows_of(tuple(entry.parameter.shape)) for entry in entries]
        for members, layout in plan_layouts(tensors, ranks, bucket_bytes // itemsize):
            planned.append(_Planned(tuple(entries[index] for index in members), layout))
    return planned


def _owned(
    plan: _Planned,
    local: Mapping[str, LocalParameter],
    rank: int,
    weights: torch.Tensor,
    gradients: Views,
) -> dict[str, ParameterShard]:
    """Return this rank's shards of the parameters of a bucket: parts of its two segments."""
    shards = {}
    for slot, first, count in plan.layout.owned(rank):
        entry = local[plan.trained[slot.index].name]
        start = slot.start + first * slot.width - rank * plan.layout.segment
        stop = start + count * slot.width
        shape = entry.parameter.shape
        if count < slot.rows:
            shape = (count,) if len(shape) == 1 else (count, slot.width)
        tensor = nn.Parameter(weights[start:stop].view(shape))
        gradients.add(tensor, start)
        pieces = pieces_of(entry.cut, first, count)
        blocks = tuple(piece.block for piece in pieces)
        placement = Placement(entry.global_shape, tensor.dtype, blocks, entry.cut.replica)
        shards[entry.name] = ParameterShard(entry.name, tensor, placement, pieces)
    return shards
