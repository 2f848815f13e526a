"""Llama, Mistral, Qwen 2 and Qwen 3: the plain decoders of `transformers`, versions 4 and 5."""

from collections.abc import Callable
from typing import Any

from mtron_ckpt.conversion.config_table import (
    ConfigTable,
    Field,
    boolean,
    count,
    list_of,
    natural,
    one_of,
    optional,
)
from mtron_ckpt.conversion.families.base import Architecture, Family
from mtron_ckpt.conversion.families.decoders import (
    ATTENTION,
    COMMON_FIELDS,
    DROPOUT,
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    INVERSE_FREQUENCIES,
    NORMS,
    SIZE_FIELDS,
    check_heads,
    decoder_sizes,
    gated_mlp,
    head_fields,
)
from mtron_ckpt.conversion.names import Config, NameTable
from mtron_ckpt.conversion.rope import Rope

TABLE = NameTable(
    rows=(
        EMBEDDING,
        NORMS[0],
        *ATTENTION,
        NORMS[1],
        *gated_mlp(bias_flag="feed_forward_bias"),
        FINAL_NORM,
        HEAD,
    ),
    derived=INVERSE_FREQUENCIES,
)
_ONLY: dict[str, Any] = {"hidden_act": "silu", "attention_dropout": 0.0}
_NEVER: dict[str, Callable[[Config], bool]] = {
    name: lambda model: False
    for name in ("qkv_bias", "output_bias", "head_norms", "feed_forward_bias")
}


def _bias(model: Config) -> bool:
    return model["attention_bias"]


def _family(
    model_type: str,
    architecture: str,
    *fields: Field,
    token_ids: tuple[int | None, int | None],
    flags: dict[str, Callable[[Config], bool]] | None = None,
    **options: Any,
) -> Family:
    """A family with the rows above.

    Args:
        model_type: in both formats.
        architecture: the class of `transformers`.
        fields: beside those of all decoders; those of heads are the family's own.
        token_ids: the defaults of the first and the last token of a document.
        flags: those of the rows that are not always false.
        options: of the config table.
    """
    first, last = token_ids
    config = ConfigTable(
        fields=(*SIZE_FIELDS, *fields, *COMMON_FIELDS),
        sizes=decoder_sizes,
        translations=(Rope(),),
        token_ids={"bos_token_id": first, "eos_token_id": last, "pad_token_id": None},
        only=_ONLY,
        ours_only=(DROPOUT,),
        checks=(check_heads,),
        **options,
    )
    return Family(
        model_type=model_type,
        config=config,
        architectures=(Architecture(architecture, TABLE),),
        flags=_NEVER | (flags or {}),
    )


def _heads_divide_hidden(model: Config) -> None:
    if model["hidden_size"] % model["num_attention_heads"]:
        raise ValueError(
            f"model.num_attention_heads: transformers loads only models whose hidden_size = "
            f"{model['hidden_size']} it divides, got {model['num_attention_heads']}; "
            "this model cannot be expressed as a LlamaForCausalLM"
        )


LLAMA = _family(
    "llama",
    "LlamaForCausalLM",
    *head_fields(),
    Field("attention_bias", boolean, False),
    Field("mlp_bias", boolean, False),
    token_ids=(1, 2),
    flags={
        "qkv_bias": _bias,
        "output_bias": _bias,
        "feed_forward_bias": lambda model: model["mlp_bias"],
    },
    limits=(_heads_divide_hidden,),
)

MISTRAL = _family(
    "mistral",
    "MistralForCausalLM",
    *head_fields(kv_heads=8, max_positions=131072),
    Field("sliding_window", optional(count), 4096),
    token_ids=(1, 2),
)


def _default_window(model: Config) -> int | None:
    return 4096 if model["use_sliding_window"] else None


def _check_layer_types(model: Config) -> None:
    types = model["layer_types"]
    if types is not None and len(types) != model["num_hidden_layers"]:
        raise ValueError(
            f"layer_types: must have one entry for each of num_hidden_layers = "
            f"{model['num_hidden_layers']} layers, got {len(types)}"
        )


def _window_fields() -> tuple[Field, ...]:
    """The fields of Qwen's windows, which only some layers have."""
    layer_type = one_of("full_attention", "sliding_attention")
    return (
        Field("use_sliding_window", boolean, False),
        Field("sliding_window", optional(count), _default_window),
        Field("max_window_layers", natural, 28),
        Field("layer_types", optional(list_of(layer_type)), None),
    )


QWEN2 = _family(
    "qwen2",
    "Qwen2ForCausalLM",
    *head_fields(kv_heads=32, max_positions=32768, omit_head_dim=True),
    *_window_fields(),
    token_ids=(None, None),
    flags={"qkv_bias": lambda model: True},
)

QWEN3 = _family(
    "qwen3",
    "Qwen3ForCausalLM",
    *head_fields(kv_heads=32, head_dim=128, max_positions=32768),
    *_window_fields(),
    Field("attention_bias", boolean, False),
    token_ids=(None, None),
    flags={"qkv_bias": _bias, "output_bias": _bias, "head_norms": lambda model: True},
)
