"""DeepSeek-V3 and its like: latent attention, experts, layers that predict further tokens."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mtron_ckpt.conversion.config_table import (
    ConfigTable,
    Field,
    boolean,
    count,
    natural,
    number,
    optional,
    positive,
)
from mtron_ckpt.conversion.families.base import Architecture, Family
from mtron_ckpt.conversion.families.decoders import (
    COMMON_FIELDS,
    DROPOUT,
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    HEAD_FLAG,
    INVERSE_FREQUENCIES,
    SIZE_FIELDS,
    query_heads,
)
from mtron_ckpt.conversion.names import Config, Copy, NameTable, Row
from mtron_ckpt.conversion.rope import Rope

FURTHER = "num_nextn_predict_layers"
"""The field that counts the layers that predict further tokens; theirs follow the last layer."""


def _rows(ours: str, every: str, dense: str | None, sparse: str) -> Iterator[Row]:
    """The rows of decoder layers.

    Args:
        ours: what our names begin with.
        every: the set of layers that these are.
        dense: those of them that have one feed-forward layer; None where none has.
        sparse: those that have experts.
    """

    def row(name: str, *shape: str, theirs: str = "", **conditions: Any) -> Row:
        conditions = {"layers": every} | conditions
        there = f"model.layers.{{layer}}.{theirs or name}"
        return Row(f"{ours}{name}", there, shape, **conditions)

    latent, bias = "has_query_latent", "attention_bias"
    yield row("input_layernorm.weight", "hidden")
    yield row("self_attn.q_proj.weight", "query", "hidden", unless=latent)
    yield row("self_attn.q_a_proj.weight", "query_latent", "hidden", when=latent)
    yield row("self_attn.q_a_proj.bias", "query_latent", when="has_query_latent_bias")
    yield row("self_attn.q_a_layernorm.weight", "query_latent", when=latent)
    yield row("self_attn.q_b_proj.weight", "query", "query_latent", when=latent)
    yield row("self_attn.kv_a_proj_with_mqa.weight", "shared", "hidden")
    yield row("self_attn.kv_a_proj_with_mqa.bias", "shared", when=bias)
    yield row("self_attn.kv_a_layernorm.weight", "latent")
    yield row("self_attn.kv_b_proj.weight", "key_and_value", "latent")
    yield row("self_attn.o_proj.weight", "hidden", "value")
    yield row("self_attn.o_proj.bias", "hidden", when=bias)
    yield row("post_attention_layernorm.weight", "hidden")
    for name, size, width in _projections("intermediate") if dense is not None else ():
        yield row(f"mlp.{name}.weight", size, width, layers=dense)
    router, bias_name = "mlp.gate.weight", "mlp.gate.e_score_correction_bias"
    yield row("mlp.router.weight", "experts", "hidden", theirs=router, layers=sparse)
    yield row("mlp.router.bias", "experts", theirs=bias_name, layers=sparse)
    for name, size, width in _projections("expert"):
        theirs = f"mlp.experts.{{expert}}.{name}.weight"
        yield row(f"mlp.experts.{name}", "experts", size, width, theirs=theirs, layers=sparse)
    for name, size, width in _projections("shared_expert"):
        theirs, here = f"mlp.shared_experts.{name}.weight", f"mlp.shared_expert.{name}.weight"
        yield row(here, size, width, theirs=theirs, layers=sparse, when="n_shared_experts")


def _projections(width: str) -> tuple[tuple[str, str, str], ...]:
    """Name and sizes of the projections of a gated feed-forward layer of this width."""
    return (
        ("gate_proj", width, "hidden"),
        ("up_proj", width, "hidden"),
        ("down_proj", "hidden", width),
    )


def _further(ours: str, theirs: str, *shape: str) -> Row:
    """A tensor that only a layer that predicts a further token has."""
    here, there = f"mtp.layers.{{layer}}.{ours}", f"model.layers.{{layer}}.{theirs}"
    return Row(here, there, shape, layers="further")


def _repeated(name: str, of: str, **conditions: str) -> Copy:
    """A tensor of the model that published files repeat in each of these layers."""
    return Copy(f"model.layers.{{layer}}.{name}", of, layers="further", **conditions)


TABLE = NameTable(
    rows=(
        EMBEDDING,
        *_rows("layers.{layer}.", "all", "dense", "sparse"),
        FINAL_NORM,
        HEAD,
        _further("enorm.weight", "enorm.weight", "hidden"),
        _further("hnorm.weight", "hnorm.weight", "hidden"),
        _further("eh_proj.weight", "eh_proj.weight", "hidden", "twice_hidden"),
        *_rows("mtp.layers.{layer}.block.", "further", None, "further"),
        _further("norm.weight", "shared_head.norm.weight", "hidden"),
    ),
    derived=INVERSE_FREQUENCIES,
    copies=(
        _repeated("embed_tokens.weight", EMBEDDING.theirs),
        _repeated("shared_head.head.weight", HEAD.theirs, unless=HEAD_FLAG),
        _repeated("shared_head.head.weight", EMBEDDING.theirs, when=HEAD_FLAG),
    ),
)


def _sizes(model: Config) -> dict[str, int]:
    heads, latent = model["num_attention_heads"], model["kv_lora_rank"]
    nope, rope, value = (
        model[name] for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    return {
        "vocab": model["vocab_size"],
        "hidden": model["hidden_size"],
        "twice_hidden": 2 * model["hidden_size"],
        "intermediate": model["intermediate_size"],
        "query_latent": model["q_lora_rank"] or 0,
        "query": heads * (nope + rope),
        "latent": latent,
        "shared": latent + rope,
        "key_and_value": heads * (nope + value),
        "value": heads * value,
        "experts": model["n_routed_experts"],
        "expert": model["moe_intermediate_size"],
        "shared_expert": model["n_shared_experts"] * model["moe_intermediate_size"],
    }


def _dense(model: Config) -> range:
    return range(min(model["first_k_dense_replace"], model["num_hidden_layers"]))


def _sparse(model: Config) -> range:
    return range(len(_dense(model)), model["num_hidden_layers"])


def _further_layers(model: Config) -> list[tuple[int, int]]:
    return [(index, model["num_hidden_layers"] + index) for index in range(model[FURTHER])]


def _held(model: Config, names: Collection[str], notes: list[str]) -> Config:
    """`transformers` keeps the number of further layers in config.json, but not their weights."""
    first = f"model.layers.{model['num_hidden_layers']}.eh_proj.weight"
    if not model[FURTHER] or first in names:
        return model
    notes.append(f"{FURTHER}: taken as 0, got {model[FURTHER]}, but there are no such weights")
    return model | {FURTHER: 0}


class _Published:
    """Keys of published files that follow from others, or of which one value can be honoured."""

    ours = ()
    theirs = ("qk_head_dim", "ep_size", "moe_layer_freq", "scoring_func", "seq_aux", "topk_method")

    def from_hf(self, hf: Mapping[str, Any]) -> Config:
        """Return nothing; refuse what cannot be honoured."""
        width = (hf.get("qk_nope_head_dim") or 128) + (hf.get("qk_rope_head_dim") or 64)
        honoured = (width, 1, 1, "sigmoid", True, "noaux_tc")
        for name, value in zip(self.theirs, honoured, strict=True):
            if hf.get(name, value) != value:
                raise ValueError(f"{name}: only {value!r} can be honoured, got {hf[name]!r}")
        return {}

    def to_hf(self, model: Config) -> dict[str, Any]:
        """Return the one that `transformers` writes."""
        return {"qk_head_dim": model["qk_nope_head_dim"] + model["qk_rope_head_dim"]}


def _coefficient(name: str, value: Any) -> float:
    """Return a number of at least 0."""
    found = number(name, value)
    if found < 0:
        raise ValueError(f"{name}: must be at least 0, got {value!r}")
    return found


def _rotary_width(model: Config) -> int:
    return model["qk_rope_head_dim"]


def _check(model: Config) -> None:
    """Refuse what does not fit together."""
    heads, rope = model["num_attention_heads"], model["qk_rope_head_dim"]
    if model["num_key_value_heads"] != heads:
        raise ValueError(
            f"num_key_value_heads: latent attention has num_attention_heads = {heads} of them, "
            f"got {model['num_key_value_heads']}"
        )
    if model["head_dim"] != rope or rope % 2:
        raise ValueError(
            f"head_dim: must be qk_rope_head_dim = {rope} and even, got {model['head_dim']}"
        )
    experts, groups = model["n_routed_experts"], model["n_group"]
    if experts % groups:
        raise ValueError(f"n_group: must divide n_routed_experts = {experts}, got {groups}")


DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    config=ConfigTable(
        fields=(
            *SIZE_FIELDS,
            Field("num_key_value_heads", count, query_heads),
            Field("max_position_embeddings", count, 4096),
            Field("q_lora_rank", optional(count), 1536),
            Field("kv_lora_rank", count, 512),
            Field("qk_nope_head_dim", count, 128),
            Field("qk_rope_head_dim", count, 64),
            Field("head_dim", count, _rotary_width),
            Field("v_head_dim", count, 128),
            Field("rope_interleave", boolean, True),
            Field("attention_bias", boolean, False),
            Field("first_k_dense_replace", natural, 3),
            Field("moe_intermediate_size", count, 2048),
            Field("n_routed_experts", count, 256),
            Field("num_experts_per_tok", count, 8),
            Field("n_shared_experts", natural, 1),
            Field("n_group", count, 8),
            Field("topk_group", count, 4),
            Field("norm_topk_prob", boolean, True),
            Field("routed_scaling_factor", positive, 2.5),
            Field("aux_loss_alpha", _coefficient, 0.0, omit_default=True),
            Field(FURTHER, natural, 0),
            *COMMON_FIELDS,
        ),
        sizes=_sizes,
        translations=(Rope(), _Published()),
        token_ids={"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None},
        only={"hidden_act": "silu", "attention_dropout": 0.0},
        ours_only=(DROPOUT, Field("router_bias_update_rate", _coefficient, 0.0)),
        checks=(_check,),
    ),
    architectures=(Architecture("DeepseekV3ForCausalLM", TABLE),),
    layer_sets={"dense": _dense, "sparse": _sparse, "further": _further_layers},
    flags={
        "has_query_latent": lambda model: model["q_lora_rank"] is not None,
        "has_query_latent_bias": lambda model: (
            model["q_lora_rank"] is not None and model["attention_bias"]
        ),
    },
    layer_counts=("num_hidden_layers", FURTHER),
    held=_held,
)
