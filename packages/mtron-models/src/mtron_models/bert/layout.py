"""How the parameters of the BERT family may be cut over devices. Imports no torch."""

from typing import TYPE_CHECKING

from mtron_models.layout import Layout, Replicate, colwise, heads, rowwise, sequence, vocab

if TYPE_CHECKING:
    from mtron_models.bert.config import BertConfig


def layout(config: "BertConfig") -> Layout:
    """Return the layout table: heads and feed-forward columns may be spread, norms may not.

    What works on one token of a row (the pooler and what stands on it) is whole everywhere.
    """
    vocabulary, counted = vocab(of="vocab_size"), "num_attention_heads"
    table: Layout = {
        "embed.weight": vocabulary,
        # Added to the tokens whose rows a rank has, so each rank's gradient is a part, as of heads.
        "embed.positions.weight": heads(),
        "embed.token_types.weight": heads(),
        "embed_norm.*": sequence(),
        "layers.*.self_attn.[qkv]_proj.*": colwise(config.head_dim, of=counted),
        "layers.*.self_attn.o_proj.weight": rowwise(config.head_dim, of=counted),
        "layers.*.self_attn.o_proj.bias": sequence(),
        "layers.*.post_attention_layernorm.*": sequence(),
        "layers.*.mlp.up_proj.*": colwise(of="intermediate_size"),
        "layers.*.mlp.down_proj.weight": rowwise(of="intermediate_size"),
        "layers.*.mlp.down_proj.bias": sequence(),
        "layers.*.post_feedforward_layernorm.*": sequence(),
    }
    if "pooler" in config.heads:
        table["pooler.*"] = Replicate()
    if config.num_row_classes:
        table["row_head.*"] = Replicate()
    if "masked_lm" in config.heads:
        table["head_transform.*"] = sequence()
        table["head.*"] = vocabulary
    return table
