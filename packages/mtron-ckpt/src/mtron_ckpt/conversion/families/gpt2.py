"""GPT-2: `GPT2LMHeadModel` of `transformers`, versions 4 and 5, and the files of its base model."""

from mtron_ckpt.conversion.config_table import (
    ConfigTable,
    Field,
    boolean,
    count,
    one_of,
    optional,
    positive,
    probability,
)
from mtron_ckpt.conversion.families.base import Architecture, Family
from mtron_ckpt.conversion.names import Config, NameTable, Row


def _layer(ours: str, theirs: str, *shape: str) -> tuple[Row, Row]:
    """The weight and the bias of a module of every layer; their matrices are transposed."""
    here, there = f"layers.{{layer}}.{ours}", f"transformer.h.{{layer}}.{theirs}"
    is_matrix = len(shape) == 2
    weight = Row(f"{here}.weight", f"{there}.weight", shape, transposed=is_matrix, layers="decoder")
    return weight, Row(f"{here}.bias", f"{there}.bias", shape[:1], layers="decoder")


def _fused(name: str) -> tuple[Row, Row]:
    """The weight and the bias of a third of `c_attn`."""
    here, there = f"layers.{{layer}}.self_attn.{name}_proj", "transformer.h.{layer}.attn.c_attn"
    return (
        Row(
            f"{here}.weight",
            f"{there}.weight",
            ("hidden", "hidden"),
            transposed=True,
            fused=0,
            layers="decoder",
        ),
        Row(f"{here}.bias", f"{there}.bias", ("hidden",), fused=0, layers="decoder"),
    )


TABLE = NameTable(
    rows=(
        Row("embed.weight", "transformer.wte.weight", ("vocab", "hidden")),
        Row("embed.positions.weight", "transformer.wpe.weight", ("positions", "hidden")),
        *_layer("input_layernorm", "ln_1", "hidden"),
        *_fused("q"),
        *_fused("k"),
        *_fused("v"),
        *_layer("self_attn.o_proj", "attn.c_proj", "hidden", "hidden"),
        *_layer("post_attention_layernorm", "ln_2", "hidden"),
        *_layer("mlp.up_proj", "mlp.c_fc", "intermediate", "hidden"),
        *_layer("mlp.down_proj", "mlp.c_proj", "hidden", "intermediate"),
        Row("norm.weight", "transformer.ln_f.weight", ("hidden",)),
        Row("norm.bias", "transformer.ln_f.bias", ("hidden",)),
        Row(
            "head.weight",
            "lm_head.weight",
            ("vocab", "hidden"),
            unless="tie_word_embeddings",
            copy_of="embed.weight",
        ),
    ),
    derived=("transformer.h.{layer}.attn.bias", "transformer.h.{layer}.attn.masked_bias"),
    old_names=((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),),
)


def _layers(model: Config) -> range:
    return range(model["n_layer"])


def _sizes(model: Config) -> dict[str, int]:
    hidden, inner = model["n_embd"], model["n_inner"]
    return {
        "vocab": model["vocab_size"],
        "positions": model["n_positions"],
        "hidden": hidden,
        "intermediate": 4 * hidden if inner is None else inner,
    }


def _check_heads(model: Config) -> None:
    if model["n_embd"] % model["n_head"]:
        raise ValueError(
            f"n_embd: must be a multiple of n_head = {model['n_head']}, got {model['n_embd']}"
        )


GPT2 = Family(
    model_type="gpt2",
    config=ConfigTable(
        fields=(
            Field("vocab_size", count, 50257),
            Field("n_positions", count, 1024),
            Field("n_embd", count, 768),
            Field("n_layer", count, 12),
            Field("n_head", count, 12),
            Field("n_inner", optional(count), None),
            Field(
                "activation_function", one_of("gelu_new", "gelu_pytorch_tanh", "gelu"), "gelu_new"
            ),
            Field("resid_pdrop", probability, 0.1),
            Field("embd_pdrop", probability, 0.1),
            Field("attn_pdrop", probability, 0.1),
            Field("layer_norm_epsilon", positive, 1e-5),
            Field("initializer_range", positive, 0.02),
            Field("scale_attn_weights", boolean, True),
            Field("scale_attn_by_inverse_layer_idx", boolean, False),
            Field("reorder_and_upcast_attn", boolean, False),
            Field("tie_word_embeddings", boolean, True),
        ),
        sizes=_sizes,
        token_ids={"bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": None},
        only={"add_cross_attention": False},
        no_effect=frozenset(
            {
                "n_ctx",
                "summary_activation",
                "summary_first_dropout",
                "summary_proj_to_labels",
                "summary_type",
                "summary_use_proj",
                "task_specific_params",
            }
        ),
        checks=(_check_heads,),
    ),
    architectures=(Architecture("GPT2LMHeadModel", TABLE),),
    layer_sets={"decoder": _layers},
    layer_counts=("n_layer",),
)
