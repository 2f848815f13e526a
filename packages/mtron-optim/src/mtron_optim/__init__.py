"""Optimizers, learning-rate schedules, clipping and model acceleration for any PyTorch model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtron_optim.acceleration import TrainableModel as TrainableModel
    from mtron_optim.acceleration import accelerate as accelerate
    from mtron_optim.build import build_optimizer as build_optimizer
    from mtron_optim.build import set_learning_rate as set_learning_rate
    from mtron_optim.clip import clip_ as clip_
    from mtron_optim.combined import CombinedOptimizer as CombinedOptimizer
    from mtron_optim.config import KernelConfig as KernelConfig
    from mtron_optim.config import MuonConfig as MuonConfig
    from mtron_optim.config import OptimConfig as OptimConfig
    from mtron_optim.memory import keep_freed_memory as keep_freed_memory
    from mtron_optim.muon import Muon as Muon
    from mtron_optim.newton_schulz import orthogonalize as orthogonalize
    from mtron_optim.newton_schulz import polynomials as polynomials
    from mtron_optim.peak import measure_matmul_peak as measure_matmul_peak
    from mtron_optim.schedule import ScheduleConfig as ScheduleConfig
    from mtron_optim.schedule import learning_rate_scale as learning_rate_scale
    from mtron_optim.shards import Shard as Shard
    from mtron_optim.shards import WholeParameter as WholeParameter
    from mtron_optim.shards import shards_of as shards_of
    from mtron_optim.state import export_state as export_state
    from mtron_optim.state import load_state as load_state

__all__ = [
    "CombinedOptimizer",
    "KernelConfig",
    "Muon",
    "MuonConfig",
    "OptimConfig",
    "ScheduleConfig",
    "Shard",
    "TrainableModel",
    "WholeParameter",
    "accelerate",
    "build_optimizer",
    "clip_",
    "export_state",
    "keep_freed_memory",
    "learning_rate_scale",
    "load_state",
    "measure_matmul_peak",
    "orthogonalize",
    "polynomials",
    "set_learning_rate",
    "shards_of",
]
_MODULES = {
    "CombinedOptimizer": "mtron_optim.combined",
    "KernelConfig": "mtron_optim.config",
    "Muon": "mtron_optim.muon",
    "MuonConfig": "mtron_optim.config",
    "OptimConfig": "mtron_optim.config",
    "ScheduleConfig": "mtron_optim.schedule",
    "Shard": "mtron_optim.shards",
    "TrainableModel": "mtron_optim.acceleration",
    "WholeParameter": "mtron_optim.shards",
    "accelerate": "mtron_optim.acceleration",
    "build_optimizer": "mtron_optim.build",
    "clip_": "mtron_optim.clip",
    "export_state": "mtron_optim.state",
    "keep_freed_memory": "mtron_optim.memory",
    "learning_rate_scale": "mtron_optim.schedule",
    "load_state": "mtron_optim.state",
    "measure_matmul_peak": "mtron_optim.peak",
    "orthogonalize": "mtron_optim.newton_schulz",
    "polynomials": "mtron_optim.newton_schulz",
    "set_learning_rate": "mtron_optim.build",
    "shards_of": "mtron_optim.shards",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
