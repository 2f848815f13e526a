"""How the parameters of the DeepSeek-V3 family may be cut over devices. Imports no torch."""

from typing import TYPE_CHECKING

from mtron_models.layout import Layout, colwise, rowwise, sequence, vocab
from mtron_models.moe_config import moe_layout

if TYPE_CHECKING:
    from mtron_models.deepseek_v3.config import DeepseekV3Config


def layout(config: "DeepseekV3Config") -> Layout:
    """Return the layout table: heads, feed-forward columns and experts may be spread."""
    vocabulary = vocab(of="vocab_size")
    layers = {
        "layers.*.input_layernorm.weight": sequence(),
        **attention_layout(config),
        "layers.*.post_attention_layernorm.weight": sequence(),
        **moe_layout(
            "n_routed_experts", "moe_intermediate_size", shared=config.n_shared_experts > 0
        ),
    }
    table: Layout = {
        "embed.weight": vocabulary,
        **layers,
        "layers.*.mlp.gate_proj.weight": colwise(of="intermediate_size"),
        "layers.*.mlp.up_proj.weight": colwise(of="intermediate_size"),
        "layers.*.mlp.down_proj.weight": rowwise(of="intermediate_size"),
        "norm.weight": sequence(),
        "head.weight": vocabulary,
    }
    if config.num_nextn_predict_layers:
        table |= further_layout(layers)
    return table


def attention_layout(config: "DeepseekV3Config") -> Layout:
    """Return the part that says how latent attention may be cut: by heads.

    What makes the latents is whole on every rank and acts on each token by itself: heads meet
    only behind it, where latents enter `q_b_proj` and `kv_b_proj`.
    """
    heads = "num_attention_heads"
    queries = colwise(config.qk_head_dim, of=heads)
    table: Layout = {"layers.*.self_attn.kv_a_*": sequence()}
    if config.q_lora_rank is None:
        table["layers.*.self_attn.q_proj.weight"] = queries
    else:
        table["layers.*.self_attn.q_a_*"] = sequence()
        table["layers.*.self_attn.q_b_proj.weight"] = queries
    keys_and_values = colwise(config.qk_nope_head_dim + config.v_head_dim, of=heads)
    table["layers.*.self_attn.kv_b_proj.weight"] = keys_and_values
    table["layers.*.self_attn.o_proj.weight"] = rowwise(config.v_head_dim, of=heads)
    if config.attention_bias:
        table["layers.*.self_attn.o_proj.bias"] = sequence()
    return table


def further_layout(layers: Layout) -> Layout:
    """Return the part for layers that predict further tokens, each of which has a decoder layer."""
    return {
        "mtp.layers.*.[eh]norm.weight": sequence(),
        "mtp.layers.*.eh_proj.weight": sequence(),
        **{f"mtp.layers.*.block.{name.removeprefix('layers.*.')}": layers[name] for name in layers},
        "mtp.layers.*.norm.weight": sequence(),
    }
