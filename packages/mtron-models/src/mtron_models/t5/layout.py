"""How the parameters of the T5 family may be cut over devices. Imports no torch."""

from typing import TYPE_CHECKING

from mtron_models.layout import Layout, Shard, colwise, rowwise, sequence, vocab

if TYPE_CHECKING:
    from mtron_models.t5.config import T5Config


def layout(config: "T5Config") -> Layout:
    """Return the layout table: heads and feed-forward columns may be spread, norms may not.

    The tables of relative positions have a column for each head, and go with the heads.
    """
    vocabulary = vocab(of="vocab_size")
    table: Layout = {
        "embed.weight": vocabulary,
        "*relative_bias.table.weight": Shard(1, of="num_heads"),
        "*_attn.[qkv]_proj.weight": colwise(config.d_kv, of="num_heads"),
        "*_attn.o_proj.weight": rowwise(config.d_kv, of="num_heads"),
        "*norm.weight": sequence(),
        "*.mlp.up_proj.weight": colwise(of="d_ff"),
        "*.mlp.down_proj.weight": rowwise(of="d_ff"),
    }
    if config.is_gated:
        table["*.mlp.gate_proj.weight"] = colwise(of="d_ff")
    if not config.tie_word_embeddings:
        table["head.weight"] = vocabulary
    return table
