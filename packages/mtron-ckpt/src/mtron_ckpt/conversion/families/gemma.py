"""Gemma 2 and the text of Gemma 3: `Gemma2ForCausalLM` and `Gemma3ForCausalLM`."""

from collections.abc import Callable
from typing import Any

from mtron_ckpt.conversion.config_table import (
    ConfigTable,
    Field,
    Translation,
    boolean,
    count,
    list_of,
    one_of,
    optional,
    positive,
)
from mtron_ckpt.conversion.families.base import Architecture, Family
from mtron_ckpt.conversion.families.decoders import (
    ATTENTION,
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
    layer_row,
)
from mtron_ckpt.conversion.names import Config, NameTable
from mtron_ckpt.conversion.rope import Rope, RopeByLayerType

TABLE = NameTable(
    rows=(
        EMBEDDING,
        NORMS[0],
        *ATTENTION,
        NORMS[1],
        layer_row("pre_feedforward_layernorm.weight", "hidden"),
        *gated_mlp(),
        layer_row("post_feedforward_layernorm.weight", "hidden"),
        FINAL_NORM,
        HEAD,
    ),
    derived=INVERSE_FREQUENCIES,
)


def _check_windows(model: Config) -> None:
    """Refuse types of layers that are not of the layers, and windows without a size."""
    types, layers = model["layer_types"], model["num_hidden_layers"]
    if types is not None and len(types) != layers:
        raise ValueError(
            f"layer_types: must have one entry for each of num_hidden_layers = {layers} layers, "
            f"got {len(types)}"
        )
    every = model.get("sliding_window_pattern", 2)
    has_windows = "sliding_attention" in types if types is not None else every > 1
    if has_windows and model["sliding_window"] is None:
        raise ValueError("sliding_window: needed in layers with a window, got None")


def _bias(model: Config) -> bool:
    return model["attention_bias"]


def _family(
    model_type: str,
    architecture: str,
    *fields: Field,
    max_positions: int,
    final_softcap: float | None,
    rope: Translation,
    head_norms: Callable[[Config], bool],
    only: dict[str, Any],
    no_effect: frozenset[str] = frozenset(),
) -> Family:
    """A family with the rows above.

    Args:
        model_type: in both formats.
        architecture: the class of `transformers`.
        fields: beside those of both families.
        max_positions: the default of the longest sequence.
        final_softcap: the default bound of the logits.
        rope: the rotary positions.
        head_norms: whether query and key heads are normalized.
        only: keys with the one value that can be honoured, beside those of both families.
        no_effect: keys of config.json that change nothing.
    """
    layer_type = one_of("full_attention", "sliding_attention")
    config = ConfigTable(
        fields=(
            *SIZE_FIELDS,
            *head_fields(kv_heads=4, head_dim=256, max_positions=max_positions),
            Field("query_pre_attn_scalar", count, 256),
            Field("attention_bias", boolean, False),
            Field("sliding_window", optional(count), 4096),
            Field("layer_types", optional(list_of(layer_type)), None),
            Field("final_logit_softcapping", optional(positive), final_softcap),
            *fields,
            Field("rms_norm_eps", positive, 1e-6),
            Field("initializer_range", positive, 0.02),
            Field("tie_word_embeddings", boolean, True),
        ),
        sizes=decoder_sizes,
        translations=(rope,),
        token_ids={"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0},
        only={"hidden_activation": "gelu_pytorch_tanh", "attention_dropout": 0.0} | only,
        ours_only=(DROPOUT,),
        no_effect=no_effect,
        refused={"use_bidirectional_attention": "attention in both directions"},
        checks=(check_heads, _check_windows),
    )
    return Family(
        model_type=model_type,
        config=config,
        architectures=(Architecture(architecture, TABLE),),
        flags={"qkv_bias": _bias, "output_bias": _bias, "head_norms": head_norms},
    )


GEMMA2 = _family(
    "gemma2",
    "Gemma2ForCausalLM",
    Field("attn_logit_softcapping", optional(positive), 50.0),
    max_positions=8192,
    final_softcap=30.0,
    rope=Rope(),
    head_norms=lambda model: False,
    only={},
)

GEMMA3_TEXT = _family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    Field("sliding_window_pattern", count, 6, omit_default=True),
    max_positions=131072,
    final_softcap=None,
    rope=RopeByLayerType(),
    head_norms=lambda model: True,
    only={"attn_logit_softcapping": None},  # their code has the field and never reads it
    no_effect=frozenset({"_sliding_window_pattern"}),
)
