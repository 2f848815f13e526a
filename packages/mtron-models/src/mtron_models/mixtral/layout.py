"""How the parameters of the Mixtral family may be cut over devices. Imports no torch."""

from typing import TYPE_CHECKING

from mtron_models.layout import Layout, colwise, rowwise, sequence, vocab
from mtron_models.llama.layout import attention_layout
from mtron_models.moe_config import moe_layout

if TYPE_CHECKING:
    from mtron_models.mixtral.config import SparseDecoderConfig


def layout(config: "SparseDecoderConfig") -> Layout:
    """Return the layout table: heads, feed-forward columns and experts may be spread."""
    vocabulary = vocab(of="vocab_size")
    return {
        "embed.weight": vocabulary,
        **attention_layout(config),
        "layers.*layernorm.weight": sequence(),
        "layers.*.mlp.gate_proj.weight": colwise(of="intermediate_size"),
        "layers.*.mlp.up_proj.weight": colwise(of="intermediate_size"),
        "layers.*.mlp.down_proj.weight": rowwise(of="intermediate_size"),
        **moe_layout(config.experts_field, config.expert_width_field, shared=False),
        "norm.weight": sequence(),
        "head.weight": vocabulary,
    }
