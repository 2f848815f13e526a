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
    "bert": Family("mtron_models.bert.config:BertConfig", "mtron_models.bert.model:Bert"),
    "deepseek_v3": Family(
        "mtron_models.deepseek_v3.config:DeepseekV3Config",
        "mtron_models.deepseek_v3.model:DeepseekV3",
    ),
    "gemma2": Family("mtron_models.gemma.config:Gemma2Config", "mtron_models.gemma.model:Gemma"),
    "gemma3": Family(
        "mtron_models.gemma.config:Gemma3TextConfig", "mtron_models.gemma.model:Gemma"
    ),
    "gemma3_text": Family(
        "mtron_models.gemma.config:Gemma3TextConfig", "mtron_models.gemma.model:Gemma"
    ),
    "gpt2": Family("mtron_models.gpt2.config:GPT2Config", "mtron_models.gpt2.model:GPT2"),
    "llama": Family("mtron_models.llama.config:LlamaConfig", "mtron_models.llama.model:Llama"),
    "mistral": Family("mtron_models.llama.config:MistralConfig", "mtron_models.llama.model:Llama"),
    "mixtral": Family(
        "mtron_models.mixtral.config:MixtralConfig", "mtron_models.mixtral.model:Mixtral"
    ),
    "qwen2": Family("mtron_models.llama.config:Qwen2Config", "mtron_models.llama.model:Llama"),
    "qwen3": Family("mtron_models.llama.config:Qwen3Config", "mtron_models.llama.model:Llama"),
    "qwen3_moe": Family(
        "mtron_models.mixtral.config:Qwen3MoeConfig", "mtron_models.mixtral.model:Mixtral"
    ),
    "t5": Family("mtron_models.t5.config:T5Config", "mtron_models.t5.model:T5"),
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
