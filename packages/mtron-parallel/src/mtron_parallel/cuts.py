"""Which part of a parameter each tensor-parallel rank holds. Imports no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from math import lcm
from typing import Protocol, TypeAlias, runtime_checkable

from mtron_parallel.block import Block

PADDED_TO = 8
"""A padded dim has a multiple of this many elements on every rank, which matrix products like."""


@runtime_checkable
class ReplicateRule(Protocol):
    """Every rank holds the whole parameter."""

    @property
    def sequence(self) -> bool:
        """Whether it acts on each token by itself, in a region split along the sequence."""
        ...

    @property
    def heads(self) -> bool:
        """Whether each rank uses it for what it has of the heads."""
        ...


@runtime_checkable
class ShardRule(Protocol):
    """Every rank holds a part of the parameter, cut along one dim."""

    @property
    def dim(self) -> int:
        """The dim that is cut, from 0."""
        ...

    @property
    def segments(self) -> tuple[int, ...]:
        """Sizes along `dim` of parts that are cut one by one; empty where the dim is one part."""
        ...

    @property
    def unit(self) -> int | tuple[int, ...]:
        """Elements along `dim` that stay together, of all segments or of each."""
        ...

    @property
    def pad(self) -> bool:
        """Whether the dim may be padded where the ranks do not divide it."""
        ...

    @property
    def replicate_if_fewer(self) -> bool:
        """Whether several ranks may hold the same unit when there are fewer units than ranks."""
        ...

    @property
    def axis(self) -> str:
        """The mesh axis that cuts: "tp" or "ep"."""
        ...

    @property
    def of(self) -> str | tuple[str, ...]:
        """The field of the model's configuration that counts the units: one for all segments or
        one for each; or nothing.
        """
        ...


Rule: TypeAlias = ShardRule | ReplicateRule
"""How a parameter may be cut: any object with the fields of one of the two."""


@dataclass(frozen=True)
class Cut:
    """What one rank of the "tp" axis holds of one parameter.

    Attributes:
        shape: the local tensor's shape, the same on every rank.
        blocks: rectangles of the global parameter that the local tensor holds, one after the
            other along the dim that is cut, from index 0 on; what lies beyond them is padding.
        replica: number of this rank among those that hold the same blocks, from 0.
        replicas: how many ranks hold the same blocks.
    """

    shape: tuple[int, ...]
    blocks: tuple[Block, ...]
    replica: int
    replicas: int


def computes_part(rule: Rule, sequence_parallel: bool) -> bool:
    """Whether each tensor-parallel rank computes a part of the gradient of a whole parameter."""
    if isinstance(rule, ShardRule):
        return False
    return rule.heads or (rule.sequence and sequence_parallel)


def pattern_of(name: str, layout: Mapping[str, Rule]) -> str:
    """Return the first pattern of `layout` that matches the parameter `name` (`fnmatchcase`).

    Raises:
        ValueError: none does, or it leads to something that is no rule.
    """
    pattern = next((pattern for pattern in layout if fnmatchcase(name, pattern)), None)
    if pattern is None:
        raise ValueError(
            f"layout: no pattern matches the parameter {name}; add one to the model's table"
        )
    if not isinstance(layout[pattern], ShardRule | ReplicateRule):
        raise ValueError(
            f"layout: the rule of {name} is neither a Shard nor a Replicate, "
            f"got {layout[pattern]!r}; use one of these"
        )
    return pattern


def rule_of(name: str, layout: Mapping[str, Rule]) -> Rule:
    """Return how the parameter `name` may be cut: the rule of the first pattern that matches.

    Raises:
        ValueError: no pattern matches, or it leads to something that is no rule.
    """
    return layout[pattern_of(name, layout)]


def cut(shape: tuple[int, ...], rule: Rule, size: int, rank: int) -> Cut:
    """Return what rank `rank` of `size` tensor-parallel ranks holds of a parameter.

    Each segment is cut in equal runs of units, one for each rank. Where there are fewer units
    than ranks and the rule allows it, neighbouring ranks hold the same unit. Where the rule
    allows padding and the ranks do not divide the units, every rank has room for the same number
    of elements, a multiple of 8, and the last ranks hold partly or only padding. Experts (axis
    "ep") are whole on every rank.

    Args:
        shape: the parameter's global shape.
        rule: how it may be cut.
        size: ranks of the axis.
        rank: this rank's position on it.

    Raises:
        ValueError: the rule does not fit the shape, or `size` ranks cannot share the units.
    """
    assert 0 <= rank < size, f"rank {rank} of {size}"
    shape = tuple(shape)
    if not isinstance(rule, ShardRule) or rule.axis != "tp":
        return Cut(shape, (Block((0,) * len(shape), shape),), replica=rank, replicas=size)
    for what, why in obstacles(shape, rule, size, f"dim {rule.dim} of shape {shape}"):
        raise ValueError(f"tp: {size} {why} {what}; use another number of ranks")
    extents, units = _extents(shape, rule)
    if rule.pad and extents[0] // units[0] % size:
        return _padded_cut(shape, rule, units[0], size, rank)
    replicas = _num_replicas(extents[0] // units[0], rule, size)
    lengths = [extent * replicas // size for extent in extents]
    starts = accumulate(extents[:-1], initial=0)
    blocks = tuple(
        _block(shape, rule.dim, start + rank // replicas * length, length)
        for start, length in zip(starts, lengths, strict=True)
    )
    local = _block(shape, rule.dim, 0, sum(lengths)).shape
    return Cut(local, blocks, replica=rank % replicas, replicas=replicas)


def obstacles(
    shape: tuple[int, ...], rule: Rule, size: int, where: str
) -> Iterator[tuple[str, str]]:
    """Yield why `size` ranks cannot cut a parameter, each time as (what, why not).

    For example `("num_attention_heads = 8", "does not divide")`: `size` does not divide it.

    Args:
        shape: the parameter's global shape.
        rule: how it may be cut.
        size: ranks of the "tp" axis.
        where: what the parameter is called where the rule does not say what its units are.

    Raises:
        ValueError: the rule does not fit the shape, however many ranks there are.
    """
    if not isinstance(rule, ShardRule) or rule.axis != "tp":
        return
    counts = [extent // unit for extent, unit in zip(*_extents(shape, rule), strict=True)]
    if rule.pad:
        return
    replicas = [_num_replicas(count, rule, size) for count in counts]
    fewest = min((number for number in replicas if number), default=0)
    for segment, (count, number) in enumerate(zip(counts, replicas, strict=True)):
        if number and number == fewest:
            continue
        if isinstance(rule.of, tuple):
            what = f"{rule.of[segment]} = {count}"
        elif rule.of and len(set(counts)) == 1:
            what = f"{rule.of} = {count}"
        else:
            part = f", segment {segment}" if rule.segments else ""
            what = f"the unit count {count} of {where}{part}"
        if number == 0 and rule.replicate_if_fewer:
            yield what, "neither divides nor is a multiple of"
        else:  # one tensor has one number of replicas, so no segment may have more than another
            yield what, "is more than" if size > count else "does not divide"


def _extents(shape: tuple[int, ...], rule: ShardRule) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return sizes and units, along the dim that is cut, of the parts that are cut one by one."""
    if rule.dim >= len(shape):
        dims = " or ".join(map(str, range(len(shape)))) or "no cut"
        raise ValueError(f"dim: there is no such dim in shape {shape}, got {rule.dim}; use {dims}")
    extent = shape[rule.dim]
    units = rule.unit if isinstance(rule.unit, tuple) else (rule.unit,) * (len(rule.segments) or 1)
    if isinstance(rule.unit, int) and extent % rule.unit:
        raise ValueError(
            f"unit: does not divide dim {rule.dim} of shape {shape}, got {rule.unit}; "
            f"use a divisor of {extent}"
        )
    if len(units) != (len(rule.segments) or 1):
        raise ValueError(
            f"unit: must be one number, or one for each of the {len(rule.segments)} segments, "
            f"got {rule.unit}"
        )
    if not rule.segments:
        return (extent,), units
    parts = zip(rule.segments, units, strict=True)
    if sum(rule.segments) != extent or any(size % unit for size, unit in parts):
        raise ValueError(
            f"segments: must be multiples of unit = {rule.unit} that add up to dim {rule.dim} "
            f"of shape {shape}, got {rule.segments}"
        )
    if rule.pad:
        raise ValueError(
            f"pad: segments cannot be padded, got pad with segments {rule.segments}; "
            "use one of both"
        )
    return rule.segments, units


def _num_replicas(units: int, rule: ShardRule, size: int) -> int:
    """Return how many ranks hold the same unit, or 0 where `size` ranks cannot share `units`."""
    if units % size == 0:
        return 1
    return size // units if rule.replicate_if_fewer and size % units == 0 else 0


def _padded_cut(shape: tuple[int, ...], rule: ShardRule, unit: int, size: int, rank: int) -> Cut:
    extent, multiple = shape[rule.dim], lcm(unit, PADDED_TO)
    length = -(-extent // (size * multiple)) * multiple
    start = rank * length
    held = min(length, extent - start)
    blocks = (_block(shape, rule.dim, start, held),) if held > 0 else ()
    return Cut(_block(shape, rule.dim, 0, length).shape, blocks, replica=0, replicas=1)


def _block(shape: tuple[int, ...], dim: int, start: int, length: int) -> Block:
    """Return the block of a parameter that is `length` long along `dim`, from `start` on."""
    offset = tuple(start if index == dim else 0 for index in range(len(shape)))
    return Block(offset, (*shape[:dim], length, *shape[dim + 1 :]))
