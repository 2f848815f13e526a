"""Language models written as plain single-device PyTorch, with seams to attach the rest at."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtron_models.config import ModelConfig as ModelConfig
    from mtron_models.config import config_from_dict as config_from_dict
    from mtron_models.construction import build as build
    from mtron_models.context import Context as Context
    from mtron_models.context import RandomKey as RandomKey
    from mtron_models.counts import flops_per_token as flops_per_token
    from mtron_models.counts import num_parameters as num_parameters
    from mtron_models.init import Constant as Constant
    from mtron_models.init import Normal as Normal
    from mtron_models.init import initial_block as initial_block
    from mtron_models.init import initial_values as initial_values
    from mtron_models.init import initialize as initialize
    from mtron_models.layout import Layout as Layout
    from mtron_models.layout import Replicate as Replicate
    from mtron_models.layout import Shard as Shard
    from mtron_models.llama.config import LlamaConfig as LlamaConfig
    from mtron_models.losses import cross_entropy as cross_entropy
    from mtron_models.random import Key as Key
    from mtron_models.random import fold_in as fold_in
    from mtron_models.random import key_of as key_of
    from mtron_models.random import normal as normal
    from mtron_models.random import philox as philox
    from mtron_models.random import uniform as uniform

__all__ = [
    "Constant",
    "Context",
    "Key",
    "Layout",
    "LlamaConfig",
    "ModelConfig",
    "Normal",
    "RandomKey",
    "Replicate",
    "Shard",
    "build",
    "config_from_dict",
    "cross_entropy",
    "flops_per_token",
    "fold_in",
    "initial_block",
    "initial_values",
    "initialize",
    "key_of",
    "normal",
    "num_parameters",
    "philox",
    "uniform",
]
_MODULES = {
    "Constant": "mtron_models.init",
    "Context": "mtron_models.context",
    "Key": "mtron_models.random",
    "Layout": "mtron_models.layout",
    "LlamaConfig": "mtron_models.llama.config",
    "ModelConfig": "mtron_models.config",
    "Normal": "mtron_models.init",
    "RandomKey": "mtron_models.context",
    "Replicate": "mtron_models.layout",
    "Shard": "mtron_models.layout",
    "build": "mtron_models.construction",
    "config_from_dict": "mtron_models.config",
    "cross_entropy": "mtron_models.losses",
    "flops_per_token": "mtron_models.counts",
    "fold_in": "mtron_models.random",
    "initial_block": "mtron_models.init",
    "initial_values": "mtron_models.init",
    "initialize": "mtron_models.init",
    "key_of": "mtron_models.random",
    "normal": "mtron_models.random",
    "num_parameters": "mtron_models.counts",
    "philox": "mtron_models.random",
    "uniform": "mtron_models.random",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
