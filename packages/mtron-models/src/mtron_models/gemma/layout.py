"""How the parameters of the Gemma family may be cut over devices. Imports no torch."""

from typing import TYPE_CHECKING

from mtron_models.layout import Layout, colwise, rowwise, sequence, vocab
from mtron_models.llama.layout import attention_layout

if TYPE_CHECKING:
    from mtron_models.decoder_config import DecoderConfig


def layout(config: "DecoderConfig") -> Layout:
    """Return the layout table: heads and feed-forward columns may be spread, norms may not."""
    vocabulary = vocab(of="vocab_size")
    return {
        "embed.weight": vocabulary,
        **attention_layout(config),
        "layers.*layernorm.weight": sequence(),
        "layers.*.mlp.gate_proj.weight": colwise(of="intermediate_size"),
        "layers.*.mlp.up_proj.weight": colwise(of="intermediate_size"),
        "layers.*.mlp.down_proj.weight": rowwise(of="intermediate_size"),
        "norm.weight": sequence(),
        "head.weight": vocabulary,
    }
