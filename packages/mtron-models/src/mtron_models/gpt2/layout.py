"""How the parameters of GPT-2 may be cut over devices. Imports no torch."""

from typing import TYPE_CHECKING

from mtron_models.layout import Layout, colwise, heads, rowwise, sequence, vocab

if TYPE_CHECKING:
    from mtron_models.gpt2.config import GPT2Config


def layout(config: "GPT2Config") -> Layout:
    """Return the layout table: heads and feed-forward columns may be spread, norms may not."""
    vocabulary = vocab(of="vocab_size")
    return {
        "embed.weight": vocabulary,
        # Added to the tokens whose rows a rank has, so each rank's gradient is a part, as of heads.
        "embed.positions.weight": heads(),
        "layers.*.input_layernorm.*": sequence(),
        "layers.*.self_attn.[qkv]_proj.*": colwise(config.head_dim, of="n_head"),
        "layers.*.self_attn.o_proj.weight": rowwise(config.head_dim, of="n_head"),
        "layers.*.self_attn.o_proj.bias": sequence(),
        "layers.*.post_attention_layernorm.*": sequence(),
        "layers.*.mlp.up_proj.*": colwise(of="intermediate_size"),
        "layers.*.mlp.down_proj.weight": rowwise(of="intermediate_size"),
        "layers.*.mlp.down_proj.bias": sequence(),
        "norm.*": sequence(),
        "head.weight": vocabulary,
    }
