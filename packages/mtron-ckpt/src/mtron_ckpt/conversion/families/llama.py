"""Llama: `LlamaForCausalLM` of `transformers`, versions 4 and 5."""

import math
from typing import Any

from mtron_ckpt.conversion.families.base import Family
from mtron_ckpt.conversion.names import NameTable, Row


def _layer(name: str, *shape: str) -> Row:
    """A tensor of every layer; both formats call it the same within `layers.{layer}`."""
    return Row(f"layers.{{layer}}.{name}.weight", f"model.layers.{{layer}}.{name}.weight", shape)


TABLE = NameTable(
    rows=(
        Row("embed.weight", "model.embed_tokens.weight", ("vocab", "hidden")),
        _layer("input_layernorm", "hidden"),
        _layer("self_attn.q_proj", "query", "hidden"),
        _layer("self_attn.k_proj", "key_value", "hidden"),
        _layer("self_attn.v_proj", "key_value", "hidden"),
        _layer("self_attn.o_proj", "hidden", "query"),
        _layer("post_attention_layernorm", "hidden"),
        _layer("mlp.gate_proj", "intermediate", "hidden"),
        _layer("mlp.up_proj", "intermediate", "hidden"),
        _layer("mlp.down_proj", "hidden", "intermediate"),
        Row("norm.weight", "model.norm.weight", ("hidden",)),
        Row(
            "head.weight",
            "lm_head.weight",
            ("vocab", "hidden"),
            unless="tie_word_embeddings",
            copy_of="embed.weight",
        ),
    ),
    derived=("model.layers.{layer}.self_attn.rotary_emb.inv_freq",),
)

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_DEFAULTS: dict[str, Any] = {
    # What transformers' LlamaConfig takes where config.json says nothing.
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_ONLY: dict[str, Any] = {
    # Fields with a single value that the model can honour.
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
}
_REFUSED = {
    "quantization_config": "quantized weights",
    "auto_map": "a model defined by code inside the checkpoint",
    "rope_scaling": "a scaled rotary embedding",
}
_WITHOUT_EFFECT = frozenset(
    {
        "_name_or_path",
        "architectures",
        "dtype",
        "model_type",
        "mtron",
        "pretraining_tp",
        "rope_parameters",
        "rope_theta",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_OURS_ONLY: dict[str, Any] = {"hidden_dropout": 0.0}
"""Fields of our config that `transformers` lacks; they travel under the key `mtron`."""

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_DEFAULT_ROPE_THETA = 10000.0


class LlamaMapping:
    """`LlamaConfig` of mtron from and to that of `transformers`."""

    def sizes(self, model: dict[str, Any]) -> dict[str, int]:
        """Sizes for the shapes of the table."""
        head_dim = model["head_dim"]
        return {
            "vocab": model["vocab_size"],
            "hidden": model["hidden_size"],
            "intermediate": model["intermediate_size"],
            "query": model["num_attention_heads"] * head_dim,
            "key_value": model["num_key_value_heads"] * head_dim,
        }

    def from_hf(self, hf: dict[str, Any], notes: list[str]) -> dict[str, Any]:
        """Our config for theirs.

        Args:
            hf: the content of `config.json`.
            notes: gets a line for each field that has no effect here.

        Raises:
            ValueError: naming a field that is missing, malformed or cannot be honoured.
        """
        _refuse(hf)
        model: dict[str, Any] = {"model_type": "llama"}
        for name in _REQUIRED:
            model[name] = _positive_int(name, hf.get(name))
        heads = model["num_attention_heads"]
        model["num_key_value_heads"] = _positive_int(
            "num_key_value_heads", _given(hf, "num_key_value_heads", heads)
        )
        model["head_dim"] = _positive_int(
            "head_dim", _given(hf, "head_dim", model["hidden_size"] // heads)
        )
        _check_heads(model)
        for name, default in _DEFAULTS.items():
            model[name] = hf.get(name, default)
        _check_types(model)
        for name in _TOKEN_IDS:
            model[name] = _token_id(name, model[name], model["vocab_size"], notes)
        model["rope_theta"] = _rope_theta(hf)
        model.update(_ours_only(hf))
        known = {*model, *_ONLY, *_REFUSED, *_WITHOUT_EFFECT}
        notes.extend(f"config.json: {name} has no effect" for name in sorted(set(hf) - known))
        return model

    def to_hf(self, model: dict[str, Any]) -> dict[str, Any]:
        """Their config for ours, readable by transformers 4 (`rope_theta`) and 5.

        Raises:
            ValueError: naming a field of ours that their format cannot express.
        """
        same = (*_REQUIRED, "num_key_value_heads", "head_dim", *_DEFAULTS)
        missing = [name for name in (*same, "rope_theta") if name not in model]
        if missing:
            raise ValueError(f"model.{missing[0]}: missing; the checkpoint's config is incomplete")
        unknown = sorted(set(model) - {*same, "model_type", "rope_theta", *_OURS_ONLY})
        if unknown:
            raise ValueError(
                f"model.{unknown[0]}: not known to this version's conversion of Llama, got "
                f"{model[unknown[0]]!r}; use a newer mtron-ckpt"
            )
        if model["hidden_size"] % model["num_attention_heads"]:
            raise ValueError(
                f"model.num_attention_heads: transformers loads only models whose hidden_size = "
                f"{model['hidden_size']} it divides, got {model['num_attention_heads']}; "
                "this model cannot be expressed as a LlamaForCausalLM"
            )
        hf = {name: model[name] for name in same} | _ONLY
        hf["rope_theta"] = model["rope_theta"]
        hf["rope_parameters"] = {"rope_type": "default", "rope_theta": model["rope_theta"]}
        ours = {
            name: model[name]
            for name, default in _OURS_ONLY.items()
            if model.get(name, default) != default
        }
        if ours:
            hf["mtron"] = ours
        return dict(sorted(hf.items())) | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
        }


def _given(hf: dict[str, Any], name: str, default: Any) -> Any:
    value = hf.get(name)
    return default if value is None else value


def _refuse(hf: dict[str, Any]) -> None:
    for name, what in _REFUSED.items():
        value = hf.get(name)
        if value and not (name == "rope_scaling" and _is_default_rope(value)):
            raise ValueError(f"{name}: {what} cannot be converted, got {value!r}")
    for name, value in _ONLY.items():
        if hf.get(name, value) != value:
            raise ValueError(
                f"{name}: only {value!r} can be honoured, got {hf[name]!r}; "
                "this model cannot be converted"
            )


def _is_default_rope(rope: Any) -> bool:
    """Whether `rope_scaling` or `rope_parameters` describe the plain rotary embedding."""
    if not isinstance(rope, dict):
        return False
    plain = rope.get("rope_type", rope.get("type", "default")) in ("default", None)
    return plain and rope.get("partial_rotary_factor", 1.0) == 1.0


def _rope_theta(hf: dict[str, Any]) -> float:
    """The base, from transformers 5's `rope_parameters` or the older `rope_theta`."""
    rope = hf.get("rope_parameters")
    if rope is not None and not _is_default_rope(rope):
        raise ValueError(
            f"rope_parameters: only the default rotary embedding can be honoured, got {rope!r}"
        )
    values = [
        holder["rope_theta"] for holder in (hf, rope or {}) if holder.get("rope_theta") is not None
    ]
    thetas = {_number("rope_theta", value) for value in values}
    if len(thetas) > 1:
        raise ValueError(
            f"rope_theta: contradicts rope_parameters.rope_theta, got {values[0]} and {values[1]}"
        )
    return thetas.pop() if thetas else _DEFAULT_ROPE_THETA


def _positive_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: must be a positive integer, got {value!r}")
    return value


def _check_types(model: dict[str, Any]) -> None:
    """Refuse values of the wrong type among the fields that have a default."""
    _positive_int("max_position_embeddings", model["max_position_embeddings"])
    for name in ("rms_norm_eps", "initializer_range"):
        _number(name, model[name])
    if not isinstance(model["tie_word_embeddings"], bool):
        raise ValueError(
            f"tie_word_embeddings: must be true or false, got {model['tie_word_embeddings']!r}"
        )


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}: must be a positive finite number, got {value!r}")
    return float(value)


def _check_heads(model: dict[str, Any]) -> None:
    heads, shared = model["num_attention_heads"], model["num_key_value_heads"]
    if heads % shared:
        raise ValueError(
            f"num_key_value_heads: must divide num_attention_heads = {heads}, got {shared}"
        )
    if model["head_dim"] % 2:
        raise ValueError(
            f"head_dim: must be even for the rotary embedding, got {model['head_dim']}"
        )


def _token_id(name: str, value: Any, vocab_size: int, notes: list[str]) -> int | None:
    """The one id that the model config can hold, or None; `notes` tells where that loses some."""
    ids = value if isinstance(value, list) else [value]
    if any(isinstance(i, bool) or not isinstance(i, int | None) for i in ids):
        raise ValueError(f"{name}: must be a token id or null, got {value!r}")
    kept = next((i for i in ids if i is not None and 0 <= i < vocab_size), None)
    if ids not in ([kept], []):
        notes.append(f"config.json: {name} {value}: the model config keeps {kept}")
    return kept


def _ours_only(hf: dict[str, Any]) -> dict[str, Any]:
    ours = hf.get("mtron", {})
    if not isinstance(ours, dict) or set(ours) - set(_OURS_ONLY):
        raise ValueError(f"mtron: may hold {', '.join(_OURS_ONLY)} only, got {ours!r}")
    return _OURS_ONLY | ours


LLAMA = Family("llama", "LlamaForCausalLM", TABLE, LlamaMapping())
