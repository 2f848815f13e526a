"""T5, its version 1.1 and Flan-T5: `T5ForConditionalGeneration`, versions 4 and 5."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mtron_ckpt.conversion.config_table import (
    ConfigTable,
    Field,
    boolean,
    count,
    natural,
    one_of,
    optional,
    positive,
    probability,
)
from mtron_ckpt.conversion.families.base import Architecture, Family
from mtron_ckpt.conversion.names import Config, Copy, NameTable, Row


def _stack(ours: str, theirs: str, layers: str) -> tuple[Row, ...]:
    """The tensors of the encoder or of the decoder.

    Args:
        ours: how ours begin.
        theirs: how theirs begin.
        layers: the family's set of its layers.
    """
    here, there = f"{ours}layers.{{layer}}", f"{theirs}.block.{{layer}}.layer"

    def row(name: str, their_name: str, *shape: str, **conditions: Any) -> Row:
        ours, theirs = f"{here}.{name}.weight", f"{there}.{their_name}.weight"
        return Row(ours, theirs, shape, layers=layers, **conditions)

    def attention(name: str, norm: str, place: int, their_name: str) -> tuple[Row, ...]:
        return (
            row(norm, f"{place}.layer_norm", "hidden"),
            *(
                row(f"{name}.{letter}_proj", f"{place}.{their_name}.{letter}", "heads", "hidden")
                for letter in "qkv"
            ),
            row(f"{name}.o_proj", f"{place}.{their_name}.o", "hidden", "heads"),
        )

    rows = attention("self_attn", "input_layernorm", 0, "SelfAttention")
    if layers == "decoder":
        rows += attention("cross_attn", "cross_attn_layernorm", 1, "EncDecAttention")
    last = 2 if layers == "decoder" else 1
    dense = f"{last}.DenseReluDense"
    return (
        Row(
            f"{ours}relative_bias.table.weight",
            f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            ("buckets", "num_heads"),
        ),
        *rows,
        row("post_attention_layernorm", f"{last}.layer_norm", "hidden"),
        row("mlp.gate_proj", f"{dense}.wi_0", "intermediate", "hidden", when="is_gated"),
        row("mlp.up_proj", f"{dense}.wi_1", "intermediate", "hidden", when="is_gated"),
        row("mlp.up_proj", f"{dense}.wi", "intermediate", "hidden", unless="is_gated"),
        row("mlp.down_proj", f"{dense}.wo", "hidden", "intermediate"),
        Row(f"{ours}norm.weight", f"{theirs}.final_layer_norm.weight", ("hidden",)),
    )


TABLE = NameTable(
    rows=(
        Row("embed.weight", "shared.weight", ("vocab", "hidden")),
        *_stack("encoder.", "encoder", "encoder"),
        *_stack("", "decoder", "decoder"),
        Row(
            "head.weight",
            "lm_head.weight",
            ("vocab", "hidden"),
            unless="tie_word_embeddings",
            copy_of="embed.weight",
        ),
    ),
    # A table that old files have although nothing uses it.
    derived=("decoder.block.{layer}.layer.1.EncDecAttention.relative_attention_bias.weight",),
    copies=(
        Copy(theirs="encoder.embed_tokens.weight", of="shared.weight"),
        Copy(theirs="decoder.embed_tokens.weight", of="shared.weight"),
    ),
)

_GATED = "gated-gelu"
_DERIVED = {
    "relu": {"dense_act_fn": "relu", "is_gated_act": False},
    _GATED: {"dense_act_fn": "gelu_new", "is_gated_act": True},
}
"""What follows from the kind of the feed-forward block, and config.json says as well."""


@dataclass(frozen=True)
class FeedForward:
    """The kind of the feed-forward block, which config.json gives up to three times."""

    ours: tuple[str, ...] = ("feed_forward_proj",)
    theirs: tuple[str, ...] = ("feed_forward_proj", "dense_act_fn", "is_gated_act")

    def from_hf(self, hf: Mapping[str, Any]) -> Config:
        """Return the kind.

        Raises:
            ValueError: it is unknown, or contradicts what follows from it.
        """
        kind = hf.get("feed_forward_proj", "relu")
        one_of(*_DERIVED)("feed_forward_proj", kind)
        for name, value in _DERIVED[kind].items():
            if hf.get(name, value) != value:
                raise ValueError(
                    f"{name}: contradicts feed_forward_proj = {kind!r}, got {hf[name]!r}"
                )
        return {"feed_forward_proj": kind}

    def to_hf(self, model: Config) -> dict[str, Any]:
        """Return the kind and what follows from it."""
        kind = model["feed_forward_proj"]
        return {"feed_forward_proj": kind, **_DERIVED[kind]}


def _held(model: Config, names: Collection[str], notes: list[str]) -> Config:
    """Our config, untied where the weights have a head of its own.

    Version 5 of transformers writes `tie_word_embeddings` as true into every T5, also into
    version 1.1, whose head is one of its own and takes hidden states that are not scaled.
    """
    del notes
    has_head = not model["scale_decoder_outputs"] and "lm_head.weight" in names
    return model | {"tie_word_embeddings": model["tie_word_embeddings"] and not has_head}


def _sizes(model: Config) -> dict[str, int]:
    return {
        "vocab": model["vocab_size"],
        "hidden": model["d_model"],
        "heads": model["num_heads"] * model["d_kv"],
        "num_heads": model["num_heads"],
        "intermediate": model["d_ff"],
        "buckets": model["relative_attention_num_buckets"],
    }


def _check_buckets(model: Config) -> None:
    buckets = model["relative_attention_num_buckets"]
    furthest = model["relative_attention_max_distance"]
    if buckets % 4 or furthest <= buckets // 2:
        raise ValueError(
            "relative_attention_num_buckets: must be a multiple of 4 and less than twice "
            f"relative_attention_max_distance = {furthest}, got {buckets}"
        )


T5 = Family(
    model_type="t5",
    config=ConfigTable(
        fields=(
            Field("vocab_size", count, 32128),
            Field("d_model", count, 512),
            Field("d_kv", count, 64),
            Field("d_ff", count, 2048),
            Field("num_layers", count, 6),
            Field("num_decoder_layers", count, lambda model: model["num_layers"]),
            Field("num_heads", count, 8),
            Field("relative_attention_num_buckets", count, 32),
            Field("relative_attention_max_distance", count, 128),
            Field("dropout_rate", probability, 0.1),
            Field("layer_norm_epsilon", positive, 1e-6),
            Field("initializer_factor", positive, 1.0),
            Field("tie_word_embeddings", boolean, True),
            Field("scale_decoder_outputs", boolean, lambda model: model["tie_word_embeddings"]),
            Field("decoder_start_token_id", optional(natural), None, omit_default=True),
        ),
        sizes=_sizes,
        translations=(FeedForward(),),
        token_ids={"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0},
        only={"is_decoder": False, "is_encoder_decoder": True},
        no_effect=frozenset(
            {"classifier_dropout", "n_positions", "output_past", "task_specific_params"}
        ),
        checks=(_check_buckets,),
    ),
    architectures=(Architecture("T5ForConditionalGeneration", TABLE),),
    layer_sets={
        "encoder": lambda model: range(model["num_layers"]),
        "decoder": lambda model: range(model["num_decoder_layers"]),
    },
    flags={"is_gated": lambda model: model["feed_forward_proj"] == _GATED},
    layer_counts=("num_layers", "num_decoder_layers"),
    held=_held,
)
