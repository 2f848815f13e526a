"""What decoder-only families share: rows, fields, sizes, checks. A family takes what it has."""

from typing import Any

from mtron_ckpt.conversion.config_table import Field, boolean, count, positive, probability
from mtron_ckpt.conversion.names import Config, Row

HEAD_FLAG = "tie_word_embeddings"


def layer_row(name: str, *shape: str | int, **conditions: Any) -> Row:
    """A tensor of every layer that both formats call the same within `layers.{layer}`.

    Args:
        name: within the layer, such as `self_attn.q_proj.weight`.
        shape: names of sizes.
        conditions: as of `Row`.
    """
    ours, theirs = f"layers.{{layer}}.{name}", f"model.layers.{{layer}}.{name}"
    return Row(ours, theirs, shape, **conditions)


EMBEDDING = Row("embed.weight", "model.embed_tokens.weight", ("vocab", "hidden"))
ATTENTION = (
    layer_row("self_attn.q_proj.weight", "query", "hidden"),
    layer_row("self_attn.q_proj.bias", "query", when="qkv_bias"),
    layer_row("self_attn.k_proj.weight", "key_value", "hidden"),
    layer_row("self_attn.k_proj.bias", "key_value", when="qkv_bias"),
    layer_row("self_attn.v_proj.weight", "key_value", "hidden"),
    layer_row("self_attn.v_proj.bias", "key_value", when="qkv_bias"),
    layer_row("self_attn.o_proj.weight", "hidden", "query"),
    layer_row("self_attn.o_proj.bias", "hidden", when="output_bias"),
    layer_row("self_attn.q_norm.weight", "head_dim", when="head_norms"),
    layer_row("self_attn.k_norm.weight", "head_dim", when="head_norms"),
)
"""Grouped-query attention; the family must have the flags qkv_bias, output_bias, head_norms."""
NORMS = (
    layer_row("input_layernorm.weight", "hidden"),
    layer_row("post_attention_layernorm.weight", "hidden"),
)
"""The norms before attention and before the feed-forward layer."""


def gated_mlp(layers: str = "all", bias_flag: str | None = None) -> tuple[Row, ...]:
    """The three projections of a gated feed-forward layer.

    Args:
        layers: the set of layers that have one.
        bias_flag: the flag that says whether they have biases; None: never.
    """
    rows: list[Row] = []
    for name, size, width in (
        ("gate_proj", "intermediate", "hidden"),
        ("up_proj", "intermediate", "hidden"),
        ("down_proj", "hidden", "intermediate"),
    ):
        rows.append(layer_row(f"mlp.{name}.weight", size, width, layers=layers))
        if bias_flag is not None:
            rows.append(layer_row(f"mlp.{name}.bias", size, layers=layers, when=bias_flag))
    return tuple(rows)


FINAL_NORM = Row("norm.weight", "model.norm.weight", ("hidden",))
HEAD = Row(
    "head.weight",
    "lm_head.weight",
    ("vocab", "hidden"),
    unless=HEAD_FLAG,
    copy_of="embed.weight",
)
INVERSE_FREQUENCIES = ("model.layers.{layer}.self_attn.rotary_emb.inv_freq",)
"""Buffers in files of old versions of `transformers`."""


def decoder_sizes(model: Config) -> dict[str, int]:
    """The sizes of the rows above, and those of attention."""
    head_dim = model["head_dim"]
    return {
        "vocab": model["vocab_size"],
        "hidden": model["hidden_size"],
        "intermediate": model["intermediate_size"],
        "head_dim": head_dim,
        "query": model["num_attention_heads"] * head_dim,
        "key_value": model["num_key_value_heads"] * head_dim,
    }


def query_heads(model: Config) -> int:
    """A default: as many key and value heads as query heads."""
    return model["num_attention_heads"]


def hidden_per_head(model: Config) -> int:
    """A default: the width of the residual stream shared out among the query heads."""
    return model["hidden_size"] // model["num_attention_heads"]


SIZE_FIELDS = tuple(
    Field(name, count)
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
)


def head_fields(
    kv_heads: Any = query_heads,
    head_dim: Any = hidden_per_head,
    max_positions: int = 2048,
    omit_head_dim: bool = False,
) -> tuple[Field, ...]:
    """The fields of attention's heads, and the longest sequence.

    Args:
        kv_heads: the default of key and value heads.
        head_dim: the default of a head's width.
        max_positions: the default of the longest sequence.
        omit_head_dim: whether their config has no width of a head unless it is unusual.
    """
    return (
        Field("num_key_value_heads", count, kv_heads, null=query_heads),
        Field("head_dim", count, head_dim, null=hidden_per_head, omit_default=omit_head_dim),
        Field("max_position_embeddings", count, max_positions),
    )


COMMON_FIELDS = (
    Field("rms_norm_eps", positive, 1e-6),
    Field("initializer_range", positive, 0.02),
    Field("tie_word_embeddings", boolean, False),
)
DROPOUT = Field("hidden_dropout", probability, 0.0)
"""Ours only: their decoders have no dropout on the residual branches."""


def check_heads(model: Config) -> None:
    """Refuse heads that cannot be shared evenly or rotated in pairs."""
    heads, shared = model["num_attention_heads"], model["num_key_value_heads"]
    if heads % shared:
        raise ValueError(
            f"num_key_value_heads: must divide num_attention_heads = {heads}, got {shared}"
        )
    if model["head_dim"] % 2:
        raise ValueError(
            f"head_dim: must be even for the rotary embedding, got {model['head_dim']}"
        )
