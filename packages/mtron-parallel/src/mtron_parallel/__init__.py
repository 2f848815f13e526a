"""Run a plain PyTorch model on a mesh of processes: layouts, sharding, the loss rule."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtron_parallel.batch import LossStats as LossStats
    from mtron_parallel.batch import MicroBatch as MicroBatch
    from mtron_parallel.block import Block as Block
    from mtron_parallel.collectives import Group as Group
    from mtron_parallel.collectives import Observer as Observer
    from mtron_parallel.collectives import Traffic as Traffic
    from mtron_parallel.config import ParallelConfig as ParallelConfig
    from mtron_parallel.config import SupportsLayout as SupportsLayout
    from mtron_parallel.cuts import Cut as Cut
    from mtron_parallel.cuts import cut as cut
    from mtron_parallel.job import Job as Job
    from mtron_parallel.job import resolve_device as resolve_device
    from mtron_parallel.launched import die_with_parent as die_with_parent
    from mtron_parallel.launched import report_failures as report_failures
    from mtron_parallel.launcher import launch as launch
    from mtron_parallel.memory import MemoryPlan as MemoryPlan
    from mtron_parallel.memory import plan_memory as plan_memory
    from mtron_parallel.mesh import AXES as AXES
    from mtron_parallel.mesh import Mesh as Mesh
    from mtron_parallel.model import ParallelModel as ParallelModel
    from mtron_parallel.model import parallelize as parallelize
    from mtron_parallel.placement import ParameterShard as ParameterShard
    from mtron_parallel.placement import Piece as Piece
    from mtron_parallel.placement import Placement as Placement
    from mtron_parallel.testing import WorkerPool as WorkerPool
    from mtron_parallel.testing import WorkersFailed as WorkersFailed
    from mtron_parallel.watch import CollectiveTimeout as CollectiveTimeout
    from mtron_parallel.watch import PeerLost as PeerLost
    from mtron_parallel.watch import Watch as Watch

__all__ = [
    "AXES",
    "Block",
    "CollectiveTimeout",
    "Cut",
    "Group",
    "Job",
    "LossStats",
    "MemoryPlan",
    "Mesh",
    "MicroBatch",
    "Observer",
    "ParallelConfig",
    "ParallelModel",
    "ParameterShard",
    "PeerLost",
    "Piece",
    "Placement",
    "SupportsLayout",
    "Traffic",
    "Watch",
    "WorkerPool",
    "WorkersFailed",
    "cut",
    "die_with_parent",
    "launch",
    "parallelize",
    "plan_memory",
    "report_failures",
    "resolve_device",
]
_MODULES = {
    "AXES": "mtron_parallel.mesh",
    "Block": "mtron_parallel.block",
    "CollectiveTimeout": "mtron_parallel.watch",
    "Cut": "mtron_parallel.cuts",
    "Group": "mtron_parallel.collectives",
    "Job": "mtron_parallel.job",
    "LossStats": "mtron_parallel.batch",
    "MemoryPlan": "mtron_parallel.memory",
    "Mesh": "mtron_parallel.mesh",
    "MicroBatch": "mtron_parallel.batch",
    "Observer": "mtron_parallel.collectives",
    "ParallelConfig": "mtron_parallel.config",
    "ParallelModel": "mtron_parallel.model",
    "ParameterShard": "mtron_parallel.placement",
    "PeerLost": "mtron_parallel.watch",
    "Piece": "mtron_parallel.placement",
    "Placement": "mtron_parallel.placement",
    "SupportsLayout": "mtron_parallel.config",
    "Traffic": "mtron_parallel.collectives",
    "Watch": "mtron_parallel.watch",
    "WorkerPool": "mtron_parallel.testing",
    "WorkersFailed": "mtron_parallel.testing",
    "cut": "mtron_parallel.cuts",
    "die_with_parent": "mtron_parallel.launched",
    "launch": "mtron_parallel.launcher",
    "parallelize": "mtron_parallel.model",
    "plan_memory": "mtron_parallel.memory",
    "report_failures": "mtron_parallel.launched",
    "resolve_device": "mtron_parallel.job",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
