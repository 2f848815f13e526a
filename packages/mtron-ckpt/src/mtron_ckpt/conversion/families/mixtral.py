"""Mixtral: a plain decoder with experts in every layer; and what families with experts share."""

from typing import Any

from mtron_ckpt.conversion.config_table import (
    ConfigTable,
    Field,
    boolean,
    count,
    number,
    one_of,
    optional,
    positive,
)
from mtron_ckpt.conversion.families.base import Architecture, Family
from mtron_ckpt.conversion.families.decoders import (
    ATTENTION,
    COMMON_FIELDS,
    DROPOUT,
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    INVERSE_FREQUENCIES,
    NORMS,
    SIZE_FIELDS,
    check_heads,
    decoder_sizes,
    head_fields,
)
from mtron_ckpt.conversion.names import Config, NameTable, Row
from mtron_ckpt.conversion.rope import Rope


def expert_rows(theirs: str, projections: tuple[str, str, str], layers: str) -> tuple[Row, ...]:
    """The router and the experts of a layer.

    The shares of the previous step, which balancing over the global batch keeps, have no place
    in their models; they are written beside the router, where these pass them over.

    Args:
        theirs: what their names begin with within the layer, such as `mlp`.
        projections: their names of gate, up and down.
        layers: the set of layers that have experts.
    """
    ours, there = "layers.{layer}.mlp", f"model.layers.{{layer}}.{theirs}"
    router = Row(
        f"{ours}.router.weight", f"{there}.gate.weight", ("experts", "hidden"), layers=layers
    )
    load = Row(
        f"{ours}.router.load",
        f"{there}.gate.load",
        ("experts",),
        layers=layers,
        when="balances_over_batch",
    )
    shapes = (
        ("gate_proj", ("experts", "expert", "hidden")),
        ("up_proj", ("experts", "expert", "hidden")),
        ("down_proj", ("experts", "hidden", "expert")),
    )
    experts = (
        Row(f"{ours}.experts.{name}", f"{there}.experts.{{expert}}.{their_name}.weight", shape,
            layers=layers)
        for (name, shape), their_name in zip(shapes, projections, strict=True)
    )  # fmt: skip
    return (router, load, *experts)


def coefficient(name: str, value: Any) -> float:
    """Check that a value is a number of at least 0."""
    found = number(name, value)
    if found < 0:
        raise ValueError(f"{name}: must be at least 0, got {value!r}")
    return found


def check_experts(model: Config, experts: str) -> None:
    """Refuse more chosen experts than there are.

    Args:
        model: our config.
        experts: its field that counts the experts.
    """
    if model["num_experts_per_tok"] > model[experts]:
        raise ValueError(
            f"num_experts_per_tok: must be at most {experts} = {model[experts]}, "
            f"got {model['num_experts_per_tok']}"
        )


BALANCE = Field("router_aux_loss_coef", coefficient, 0.001)
OURS_ONLY = (
    DROPOUT,
    Field("router_aux_loss_over", one_of("sequence", "batch"), "sequence"),
    Field("router_z_loss_coef", coefficient, 0.0),
    Field("expert_capacity_factor", optional(positive), None),
    Field("expert_capacity_drop", one_of("weight", "position"), "weight"),
    Field("pad_experts_to_capacity", boolean, False),
)
"""What our mixtures of experts can do while training, and theirs cannot."""


def balances_over_batch(model: Config) -> bool:
    """A flag: whether the routers keep the shares of the previous step."""
    return model["router_aux_loss_over"] == "batch" and model["router_aux_loss_coef"] > 0


TABLE = NameTable(
    rows=(
        EMBEDDING,
        NORMS[0],
        *ATTENTION,
        NORMS[1],
        *expert_rows("block_sparse_moe", ("w1", "w3", "w2"), "all"),
        FINAL_NORM,
        HEAD,
    ),
    derived=INVERSE_FREQUENCIES,
)


def _sizes(model: Config) -> dict[str, int]:
    experts = {"experts": model["num_local_experts"], "expert": model["intermediate_size"]}
    return decoder_sizes(model) | experts


MIXTRAL = Family(
    model_type="mixtral",
    config=ConfigTable(
        fields=(
            *SIZE_FIELDS,
            *head_fields(kv_heads=8, max_positions=131072, omit_head_dim=True),
            Field("sliding_window", optional(count), None),
            Field("num_local_experts", count, 8, spellings=("num_experts",)),
            Field("num_experts_per_tok", count, 2),
            BALANCE,
            Field("rms_norm_eps", positive, 1e-5),
            *COMMON_FIELDS[1:],
        ),
        sizes=_sizes,
        translations=(Rope(1e6),),
        token_ids={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None},
        only={"hidden_act": "silu", "attention_dropout": 0.0, "router_jitter_noise": 0.0},
        ours_only=OURS_ONLY,
        checks=(check_heads, lambda model: check_experts(model, "num_local_experts")),
    ),
    architectures=(Architecture("MixtralForCausalLM", TABLE),),
    flags={
        "qkv_bias": lambda model: False,
        "output_bias": lambda model: False,
        "head_norms": lambda model: False,
        "balances_over_batch": balances_over_batch,
    },
)
