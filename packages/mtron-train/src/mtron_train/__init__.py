"""The training run: one validated configuration, the loop, metrics, exact resume."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtron_train.assembly import Run as Run
    from mtron_train.assembly import assemble as assemble
    from mtron_train.batches import global_batch as global_batch
    from mtron_train.config import RunConfig as RunConfig
    from mtron_train.interrupt import StopRequest as StopRequest
    from mtron_train.load import ConfigError as ConfigError
    from mtron_train.load import config_from_mapping as config_from_mapping
    from mtron_train.load import load_config as load_config
    from mtron_train.loop import Outcome as Outcome
    from mtron_train.loop import train as train
    from mtron_train.progress import ProgressLine as ProgressLine
    from mtron_train.state import TrainState as TrainState
    from mtron_train.state import snapshot as snapshot
    from mtron_train.step import train_step as train_step

__all__ = [
    "ConfigError",
    "Outcome",
    "ProgressLine",
    "Run",
    "RunConfig",
    "StopRequest",
    "TrainState",
    "assemble",
    "config_from_mapping",
    "global_batch",
    "load_config",
    "snapshot",
    "train",
    "train_step",
]
_MODULES = {
    "ConfigError": "mtron_train.load",
    "Outcome": "mtron_train.loop",
    "ProgressLine": "mtron_train.progress",
    "Run": "mtron_train.assembly",
    "RunConfig": "mtron_train.config",
    "StopRequest": "mtron_train.interrupt",
    "TrainState": "mtron_train.state",
    "assemble": "mtron_train.assembly",
    "config_from_mapping": "mtron_train.load",
    "global_batch": "mtron_train.batches",
    "load_config": "mtron_train.load",
    "snapshot": "mtron_train.state",
    "train": "mtron_train.loop",
    "train_step": "mtron_train.step",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
