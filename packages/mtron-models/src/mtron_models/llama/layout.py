"""How the parameters of the Llama family may be cut over devices. Imports no torch."""

from typing import TYPE_CHECKING

from mtron_models.layout import Layout, colwise, rowwise, sequence, vocab

if TYPE_CHECKING:
    from mtron_models.llama.config import LlamaConfig


def layout(config: "LlamaConfig") -> Layout:
    """Return the layout table: heads and feed-forward columns may be spread, norms may not."""
    vocabulary = vocab(of="vocab_size")
    query_heads, kv_heads = "num_attention_heads", "num_key_value_heads"
    key_value = colwise(config.head_dim, replicate_if_fewer=True, of=kv_heads)
    return {
        "embed.weight": vocabulary,
        "layers.*.input_layernorm.weight": sequence(),
        "layers.*.self_attn.q_proj.weight": colwise(config.head_dim, of=query_heads),
        "layers.*.self_attn.[kv]_proj.weight": key_value,
        "layers.*.self_attn.o_proj.weight": rowwise(config.head_dim, of=query_heads),
        "layers.*.post_attention_layernorm.weight": sequence(),
        "layers.*.mlp.gate_proj.weight": colwise(of="intermediate_size"),
        "layers.*.mlp.up_proj.weight": colwise(of="intermediate_size"),
        "layers.*.mlp.down_proj.weight": rowwise(of="intermediate_size"),
        "norm.weight": sequence(),
        "head.weight": vocabulary,
    }
