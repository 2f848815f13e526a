"""Language models written as plain single-device PyTorch, with seams to attach the rest at."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtron_models.adapters.config import LoraConfig as LoraConfig
    from mtron_models.adapters.config import lora_config_from_dict as lora_config_from_dict
    from mtron_models.adapters.lora import adapter_parameters as adapter_parameters
    from mtron_models.adapters.lora import add_lora as add_lora
    from mtron_models.adapters.lora import merge_lora as merge_lora
    from mtron_models.adapters.lora import remove_lora as remove_lora
    from mtron_models.adapters.lora import unmerge_lora as unmerge_lora
    from mtron_models.attention_spec import AttentionSpec as AttentionSpec
    from mtron_models.bert.config import BertConfig as BertConfig
    from mtron_models.config import ModelConfig as ModelConfig
    from mtron_models.config import config_from_dict as config_from_dict
    from mtron_models.construction import build as build
    from mtron_models.context import Context as Context
    from mtron_models.context import FurtherLabels as FurtherLabels
    from mtron_models.context import RandomKey as RandomKey
    from mtron_models.context import Report as Report
    from mtron_models.counts import flops_per_token as flops_per_token
    from mtron_models.counts import num_active_parameters as num_active_parameters
    from mtron_models.counts import num_parameters as num_parameters
    from mtron_models.deepseek_v3.config import DeepseekV3Config as DeepseekV3Config
    from mtron_models.gemma.config import Gemma2Config as Gemma2Config
    from mtron_models.gemma.config import Gemma3TextConfig as Gemma3TextConfig
    from mtron_models.gpt2.config import GPT2Config as GPT2Config
    from mtron_models.init import Constant as Constant
    from mtron_models.init import Normal as Normal
    from mtron_models.init import initial_block as initial_block
    from mtron_models.init import initial_values as initial_values
    from mtron_models.init import initialize as initialize
    from mtron_models.layers.latent_attention import absorb as absorb
    from mtron_models.layers.moe import MoE as MoE
    from mtron_models.layers.router import update_routers as update_routers
    from mtron_models.layout import Layout as Layout
    from mtron_models.layout import Replicate as Replicate
    from mtron_models.layout import Shard as Shard
    from mtron_models.llama.config import LlamaConfig as LlamaConfig
    from mtron_models.llama.config import MistralConfig as MistralConfig
    from mtron_models.llama.config import Qwen2Config as Qwen2Config
    from mtron_models.llama.config import Qwen3Config as Qwen3Config
    from mtron_models.losses import cross_entropy as cross_entropy
    from mtron_models.losses import masked_lm as masked_lm
    from mtron_models.mixtral.config import MixtralConfig as MixtralConfig
    from mtron_models.mixtral.config import Qwen3MoeConfig as Qwen3MoeConfig
    from mtron_models.published import preset as preset
    from mtron_models.published import presets as presets
    from mtron_models.random import Key as Key
    from mtron_models.random import fold_in as fold_in
    from mtron_models.random import key_of as key_of
    from mtron_models.random import normal as normal
    from mtron_models.random import philox as philox
    from mtron_models.random import uniform as uniform
    from mtron_models.rope import RopeScaling as RopeScaling
    from mtron_models.router_spec import Capacity as Capacity
    from mtron_models.router_spec import RouterSpec as RouterSpec
    from mtron_models.t5.config import T5Config as T5Config
    from mtron_models.upcycling import upcycle as upcycle

__all__ = [
    "AttentionSpec",
    "BertConfig",
    "Capacity",
    "Constant",
    "Context",
    "DeepseekV3Config",
    "FurtherLabels",
    "GPT2Config",
    "Gemma2Config",
    "Gemma3TextConfig",
    "Key",
    "Layout",
    "LlamaConfig",
    "LoraConfig",
    "MistralConfig",
    "MixtralConfig",
    "MoE",
    "ModelConfig",
    "Normal",
    "Qwen2Config",
    "Qwen3Config",
    "Qwen3MoeConfig",
    "RandomKey",
    "Replicate",
    "Report",
    "RopeScaling",
    "RouterSpec",
    "Shard",
    "T5Config",
    "absorb",
    "adapter_parameters",
    "add_lora",
    "build",
    "config_from_dict",
    "cross_entropy",
    "flops_per_token",
    "fold_in",
    "initial_block",
    "initial_values",
    "initialize",
    "key_of",
    "lora_config_from_dict",
    "masked_lm",
    "merge_lora",
    "normal",
    "num_active_parameters",
    "num_parameters",
    "philox",
    "preset",
    "presets",
    "remove_lora",
    "uniform",
    "unmerge_lora",
    "upcycle",
    "update_routers",
]
_MODULES = {
    "AttentionSpec": "mtron_models.attention_spec",
    "BertConfig": "mtron_models.bert.config",
    "Capacity": "mtron_models.router_spec",
    "Constant": "mtron_models.init",
    "Context": "mtron_models.context",
    "DeepseekV3Config": "mtron_models.deepseek_v3.config",
    "FurtherLabels": "mtron_models.context",
    "GPT2Config": "mtron_models.gpt2.config",
    "Gemma2Config": "mtron_models.gemma.config",
    "Gemma3TextConfig": "mtron_models.gemma.config",
    "Key": "mtron_models.random",
    "Layout": "mtron_models.layout",
    "LlamaConfig": "mtron_models.llama.config",
    "LoraConfig": "mtron_models.adapters.config",
    "MistralConfig": "mtron_models.llama.config",
    "MixtralConfig": "mtron_models.mixtral.config",
    "MoE": "mtron_models.layers.moe",
    "ModelConfig": "mtron_models.config",
    "Normal": "mtron_models.init",
    "Qwen2Config": "mtron_models.llama.config",
    "Qwen3Config": "mtron_models.llama.config",
    "Qwen3MoeConfig": "mtron_models.mixtral.config",
    "RandomKey": "mtron_models.context",
    "Replicate": "mtron_models.layout",
    "Report": "mtron_models.context",
    "RopeScaling": "mtron_models.rope",
    "RouterSpec": "mtron_models.router_spec",
    "Shard": "mtron_models.layout",
    "T5Config": "mtron_models.t5.config",
    "absorb": "mtron_models.layers.latent_attention",
    "adapter_parameters": "mtron_models.adapters.lora",
    "add_lora": "mtron_models.adapters.lora",
    "build": "mtron_models.construction",
    "config_from_dict": "mtron_models.config",
    "cross_entropy": "mtron_models.losses",
    "flops_per_token": "mtron_models.counts",
    "fold_in": "mtron_models.random",
    "initial_block": "mtron_models.init",
    "initial_values": "mtron_models.init",
    "initialize": "mtron_models.init",
    "key_of": "mtron_models.random",
    "lora_config_from_dict": "mtron_models.adapters.config",
    "masked_lm": "mtron_models.losses",
    "merge_lora": "mtron_models.adapters.lora",
    "normal": "mtron_models.random",
    "num_active_parameters": "mtron_models.counts",
    "num_parameters": "mtron_models.counts",
    "philox": "mtron_models.random",
    "preset": "mtron_models.published",
    "presets": "mtron_models.published",
    "remove_lora": "mtron_models.adapters.lora",
    "uniform": "mtron_models.random",
    "unmerge_lora": "mtron_models.adapters.lora",
    "upcycle": "mtron_models.upcycling",
    "update_routers": "mtron_models.layers.router",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
