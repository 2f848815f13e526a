"""How the parameters of the Llama family may be cut over devices. Imports no torch."""

from typing import TYPE_CHECKING

from mtron_models.layout import Layout, colwise, heads, rowwise, sequence, vocab

if TYPE_CHECKING:
    from mtron_models.decoder_config import DecoderConfig


def layout(config: "DecoderConfig") -> Layout:
    """Return the layout table: heads and feed-forward columns may be spread, norms may not."""
    vocabulary = vocab(of="vocab_size")
    return {
        "embed.weight": vocabulary,
        **attention_layout(config),
        "layers.*.input_layernorm.weight": sequence(),
        "layers.*.post_attention_layernorm.weight": sequence(),
        "layers.*.mlp.gate_proj.*": colwise(of="intermediate_size"),
        "layers.*.mlp.up_proj.*": colwise(of="intermediate_size"),
        "layers.*.mlp.down_proj.weight": rowwise(of="intermediate_size"),
        "layers.*.mlp.down_proj.bias": sequence(),
        "norm.weight": sequence(),
        "head.weight": vocabulary,
    }


def attention_layout(config: "DecoderConfig") -> Layout:
    """Return the part of a layout table that says how grouped-query attention may be cut."""
    query_heads, kv_heads = "num_attention_heads", "num_key_value_heads"
    key_value = colwise(config.head_dim, replicate_if_fewer=True, of=kv_heads)
    return {
        "layers.*.self_attn.q_proj.*": colwise(config.head_dim, of=query_heads),
        "layers.*.self_attn.[kv]_proj.*": key_value,
        "layers.*.self_attn.[qk]_norm.weight": heads(),
        "layers.*.self_attn.o_proj.weight": rowwise(config.head_dim, of=query_heads),
        "layers.*.self_attn.o_proj.bias": sequence(),
    }
