"""The mesh: which processes take part, how they are grouped, and where each computes."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from typing import Any

import torch
import torch.distributed as dist

from mtron_parallel.collectives import Group, Observer, Traffic
from mtron_parallel.config import ParallelConfig

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
"""Axes of the dense view, outermost first."""

_PARTS = {"world": AXES, "dp": ("dp_replicate", "dp_shard"), **{axis: (axis,) for axis in AXES}}
"""What `group`, `size` and `rank` take: an axis, all data-parallel ranks, or the whole mesh."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """A grid of processes with named axes, as a value: pass it, never look it up.

    `Mesh(device)` is one process alone. `Mesh.over` makes one of several processes, and there may
    be any number of meshes over the same processes.

    Attributes:
        device: where this process keeps its parameters and computes.
        config: the layout, with every size filled in.
        ranks: the processes, as ranks of the job, in the mesh's order.
        rank_in_world: this process's position among them.
        groups: by axis, for the axes that have more than one rank.
        traffic: counts what this rank sends over this mesh.
        observer: explains long waits, if there is one.
    """

    device: torch.device
    config: ParallelConfig = field(default_factory=lambda: ParallelConfig(dp=1))
    ranks: tuple[int, ...] = (0,)
    rank_in_world: int = 0
    groups: Mapping[str, Group] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)
    observer: Observer | None = None

    @classmethod
    def over(
        cls,
        config: ParallelConfig,
        device: torch.device | str,
        ranks: Sequence[int] | None = None,
        observer: Observer | None = None,
    ) -> "Mesh":
        """Arrange processes of the job in a grid; every one of them calls this.

        torch.distributed must have been started, by `Job.start` or by the caller.

        Args:
            config: the layout; `dp = -1` takes all processes.
            device: where this process computes.
            ranks: which processes, as ranks of the job in ascending order; none: all.
            observer: explains long waits.

        Raises:
            ValueError: the sizes do not fit the number of processes, or this one is not of them.
        """
        everyone = tuple(range(dist.get_world_size())) if ranks is None else tuple(ranks)
        if list(everyone) != sorted(set(everyone)):
            raise ValueError(f"ranks: must be in ascending order, got {everyone}")
        config = config.resolve(len(everyone))
        if dist.get_rank() not in everyone:
            raise ValueError(f"ranks: rank {dist.get_rank()} is not one of them, got {everyone}")
        own = everyone.index(dist.get_rank())
        groups: dict[str, Group] = {}
        mesh = cls(torch.device(device), config, everyone, own, groups, observer=observer)
        made: dict[tuple[int, ...], Any] = {}
        for axis, members in _memberships(config, own).items():
            members = tuple(everyone[member] for member in members)
            if len(members) > 1 and members not in made:
                made[members] = _process_group(members, config.timeout_seconds)
            if len(members) > 1:
                groups[axis] = mesh._group(axis, members, made[members])
        return mesh

    def group(self, axis: str) -> Group:
        """Return this process's group along `axis`.

        Args:
            axis: one of `AXES`, "dp" (all data-parallel ranks) or "world" (the whole mesh).
        """
        if axis not in _PARTS:
            raise ValueError(f"mesh axis: there is no {axis!r}; use one of {', '.join(_PARTS)}")
        return self.groups.get(axis) or self._group(axis, (self.ranks[self.rank_in_world],), None)

    def size(self, axis: str) -> int:
        """Return the number of ranks along `axis`, as of `group`."""
        return self.group(axis).size

    def rank(self, axis: str) -> int:
        """Return this process's position along `axis`, as of `group`."""
        return self.group(axis).rank

    def part(self, axis: str, size: int) -> Group:
        """Return this process's group of `size` neighbours along `axis`; all ranks call this.

        Args:
            axis: one of `AXES`.
            size: divides the axis's size.
        """
        whole = self.group(axis)
        assert whole.size % size == 0
        if size == whole.size:
            return whole
        first = whole.rank // size * size
        ranks = whole.ranks[first : first + size]
        handle = _process_group(ranks, self.config.timeout_seconds) if size > 1 else None
        return self._group(axis, ranks, handle)

    def _group(self, axis: str, ranks: tuple[int, ...], handle: Any) -> Group:
        return Group(
            axis=axis,
            ranks=ranks,
            rank=ranks.index(self.ranks[self.rank_in_world]),
            handle=handle,
            timeout_seconds=self.config.timeout_seconds,
            traffic=self.traffic,
            observer=self.observer,
        )


def _memberships(config: ParallelConfig, own: int) -> dict[str, list[int]]:
    """Return who shares each axis with process `own` (positions in the mesh)."""
    sizes = {"pp": 1, "dp_replicate": 1, "dp_shard": config.dp, "cp": 1, "tp": config.tp}
    places = list(product(*(range(sizes[axis]) for axis in AXES)))
    here = dict(zip(AXES, places[own], strict=True))
    found: dict[str, list[int]] = {}
    for name, along in _PARTS.items():
        found[name] = [
            position
            for position, place in enumerate(places)
            if all(
                axis in along or index == here[axis]
                for axis, index in zip(AXES, place, strict=True)
            )
        ]
    return found


def _process_group(ranks: tuple[int, ...], timeout_seconds: float) -> dist.ProcessGroup:
    """Make torch's process group of some ranks; they call this, and no others.

    torch finds the other ranks under a name made from `ranks` and from the number of groups that
    the calling process has. Processes that were in different meshes before have different numbers
    and would wait for each other forever, so whoever has fewer makes groups for itself.
    """
    limit = datetime.timedelta(seconds=timeout_seconds)

    def make(ranks: Sequence[int]) -> dist.ProcessGroup:
        group = dist.new_group(list(ranks), timeout=limit, use_local_synchronization=True)
        assert isinstance(group, dist.ProcessGroup)
        return group

    if dist.get_backend() != "fake":  # which has nobody to ask
        for _ in range(_missing_groups(ranks)):
            make([dist.get_rank()])
    return make(ranks)


def _missing_groups(ranks: tuple[int, ...]) -> int:
    """Return how many process groups this process has less than the one of `ranks` with most."""
    store, own = dist.distributed_c10d._get_default_store(), dist.get_rank()
    count = len(dist.distributed_c10d._world.pg_names)
    name = f"mtron/mesh/{sha256(str(ranks).encode()).hexdigest()}"
    name = f"{name}/{store.add(f'{name}/{own}/calls', 1)}"
    if own == ranks[0]:
        others = [int(store.get(f"{name}/{rank}")) for rank in ranks[1:]]
        store.set(f"{name}/most", str(max([count, *others])))
    else:
        store.set(f"{name}/{own}", str(count))
    return int(store.get(f"{name}/most")) - count
