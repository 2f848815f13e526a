"""The model families by `model_type`. Imports neither torch nor a family until one is asked for."""

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from mtron_models.config import ModelConfig


@dataclass(frozen=True)
class Family:
    """Where the classes of a model family are, as `module:name`.

    Attributes:
        config: its subclass of `ModelConfig`.
        model: its `nn.Module`, called with the configuration.
    """

    config: str
    model: str


FAMILIES = {
    "llama": Family("mtron_models.llama.config:LlamaConfig", "mtron_models.llama.model:Llama"),
    "mistral": Family("mtron_models.llama.config:MistralConfig", "mtron_models.llama.model:Llama"),
    "qwen2": Family("mtron_models.llama.config:Qwen2Config", "mtron_models.llama.model:Llama"),
    "qwen3": Family("mtron_models.llama.config:Qwen3Config", "mtron_models.llama.model:Llama"),
}


def family(model_type: str) -> Family:
    """Return the entry of `model_type`.

    Raises:
        ValueError: there is no such family.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    near = get_close_matches(str(model_type), FAMILIES, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(FAMILIES))}"
    raise ValueError(f"model_type: unknown model family, got {model_type!r}; {remedy}")


def config_class(model_type: str) -> "type[ModelConfig]":
    """Return the configuration class of a family, without importing torch."""
    return _load(family(model_type).config)


def model_class(model_type: str) -> "type[nn.Module]":
    """Return the model class of a family."""
    return _load(family(model_type).model)


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)
