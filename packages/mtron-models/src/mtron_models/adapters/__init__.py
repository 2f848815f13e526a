"""Adapters: few trained parameters beside the frozen ones of a model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtron_models.adapters.config import LoraConfig as LoraConfig
    from mtron_models.adapters.config import lora_config_from_dict as lora_config_from_dict
    from mtron_models.adapters.lora import LoraLinear as LoraLinear
    from mtron_models.adapters.lora import adapter_parameters as adapter_parameters
    from mtron_models.adapters.lora import add_lora as add_lora
    from mtron_models.adapters.lora import merge_lora as merge_lora
    from mtron_models.adapters.lora import remove_lora as remove_lora
    from mtron_models.adapters.lora import unmerge_lora as unmerge_lora

__all__ = [
    "LoraConfig",
    "LoraLinear",
    "adapter_parameters",
    "add_lora",
    "lora_config_from_dict",
    "merge_lora",
    "remove_lora",
    "unmerge_lora",
]
_TORCH_FREE = ("LoraConfig", "lora_config_from_dict")


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "config" if name in _TORCH_FREE else "lora"
        return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
