"""Qwen3-MoE: a Qwen 3 with experts in some or all layers."""

from mtron_ckpt.conversion.config_table import (
    ConfigTable,
    Field,
    boolean,
    count,
    list_of,
    natural,
    optional,
)
from mtron_ckpt.conversion.families.base import Architecture, Family
from mtron_ckpt.conversion.families.decoders import (
    ATTENTION,
    COMMON_FIELDS,
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    INVERSE_FREQUENCIES,
    NORMS,
    SIZE_FIELDS,
    check_heads,
    decoder_sizes,
    gated_mlp,
    head_fields,
)
from mtron_ckpt.conversion.families.mixtral import (
    BALANCE,
    OURS_ONLY,
    balances_over_batch,
    check_experts,
    expert_rows,
)
from mtron_ckpt.conversion.names import Config, NameTable
from mtron_ckpt.conversion.rope import Rope

TABLE = NameTable(
    rows=(
        EMBEDDING,
        NORMS[0],
        *ATTENTION,
        NORMS[1],
        *gated_mlp(layers="dense"),
        *expert_rows("mlp", ("gate_proj", "up_proj", "down_proj"), "sparse"),
        FINAL_NORM,
        HEAD,
    ),
    derived=INVERSE_FREQUENCIES,
)


def _sizes(model: Config) -> dict[str, int]:
    experts = {"experts": model["num_experts"], "expert": model["moe_intermediate_size"]}
    return decoder_sizes(model) | experts


def _sparse(model: Config) -> list[int]:
    step, dense = model["decoder_sparse_step"], model["mlp_only_layers"]
    layers = range(model["num_hidden_layers"])
    return [layer for layer in layers if layer not in dense and (layer + 1) % step == 0]


def _dense(model: Config) -> list[int]:
    sparse = set(_sparse(model))
    return [layer for layer in range(model["num_hidden_layers"]) if layer not in sparse]


def _bias(model: Config) -> bool:
    return model["attention_bias"]


def _check_layers(model: Config) -> None:
    layers = model["num_hidden_layers"]
    outside = [layer for layer in model["mlp_only_layers"] if layer >= layers]
    if outside:
        raise ValueError(f"mlp_only_layers: must be layers below {layers}, got {outside}")


QWEN3_MOE = Family(
    model_type="qwen3_moe",
    config=ConfigTable(
        fields=(
            *SIZE_FIELDS,
            *head_fields(kv_heads=4, max_positions=32768, omit_head_dim=True),
            Field("attention_bias", boolean, False),
            Field("use_sliding_window", boolean, False),
            Field("sliding_window", optional(count), 4096),
            Field("decoder_sparse_step", count, 1),
            Field("mlp_only_layers", list_of(natural), []),
            Field("moe_intermediate_size", count, 768),
            Field(
                "num_experts", count, 128, theirs="num_local_experts", spellings=("num_experts",)
            ),
            Field("num_experts_per_tok", count, 8),
            Field("norm_topk_prob", boolean, False),
            BALANCE,
            *COMMON_FIELDS,
        ),
        sizes=_sizes,
        translations=(Rope(),),
        token_ids={"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
        only={"hidden_act": "silu", "attention_dropout": 0.0},
        ours_only=OURS_ONLY,
        no_effect=frozenset({"max_window_layers"}),
        checks=(check_heads, lambda model: check_experts(model, "num_experts"), _check_layers),
    ),
    architectures=(Architecture("Qwen3MoeForCausalLM", TABLE),),
    layer_sets={"dense": _dense, "sparse": _sparse},
    flags={
        "qkv_bias": _bias,
        "output_bias": _bias,
        "head_norms": lambda model: True,
        "balances_over_batch": balances_over_batch,
    },
)
