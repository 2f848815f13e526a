"""How the parameters of the Llama family may be cut over devices. Imports no torch."""

from mtron_models.layout import Layout, colwise, rowwise, sequence, vocab
from mtron_models.llama.config import LlamaConfig


def layout(config: LlamaConfig) -> Layout:
    """Return the layout table: heads and feed-forward columns may be spread, norms may not."""
    head_dim = config.head_dim
    return {
        "embed.weight": vocab(),
        "layers.*.input_layernorm.weight": sequence(),
        "layers.*.self_attn.q_proj.weight": colwise(head_dim),
        "layers.*.self_attn.[kv]_proj.weight": colwise(head_dim, replicate_if_fewer=True),
        "layers.*.self_attn.o_proj.weight": rowwise(head_dim),
        "layers.*.post_attention_layernorm.weight": sequence(),
        "layers.*.mlp.gate_proj.weight": colwise(),
        "layers.*.mlp.up_proj.weight": colwise(),
        "layers.*.mlp.down_proj.weight": rowwise(),
        "norm.weight": sequence(),
        "head.weight": vocab(),
    }
