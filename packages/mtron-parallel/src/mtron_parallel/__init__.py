"""Run a plain PyTorch model on a mesh of processes: micro-batches, the loss rule, placements."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtron_parallel.batch import LossStats as LossStats
    from mtron_parallel.batch import MicroBatch as MicroBatch
    from mtron_parallel.mesh import AXES as AXES
    from mtron_parallel.mesh import Mesh as Mesh
    from mtron_parallel.model import ParallelModel as ParallelModel
    from mtron_parallel.model import ParameterShard as ParameterShard
    from mtron_parallel.model import parallelize as parallelize
    from mtron_parallel.placement import Block as Block
    from mtron_parallel.placement import Placement as Placement

__all__ = [
    "AXES",
    "Block",
    "LossStats",
    "Mesh",
    "MicroBatch",
    "ParallelModel",
    "ParameterShard",
    "Placement",
    "parallelize",
]
_MODULES = {
    "AXES": "mtron_parallel.mesh",
    "Block": "mtron_parallel.placement",
    "LossStats": "mtron_parallel.batch",
    "Mesh": "mtron_parallel.mesh",
    "MicroBatch": "mtron_parallel.batch",
    "ParallelModel": "mtron_parallel.model",
    "ParameterShard": "mtron_parallel.model",
    "Placement": "mtron_parallel.placement",
    "parallelize": "mtron_parallel.model",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
