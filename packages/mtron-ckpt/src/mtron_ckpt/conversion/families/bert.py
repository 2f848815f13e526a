"""BERT: five classes of `transformers`, versions 4 and 5, that differ in their heads."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

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
from mtron_ckpt.conversion.names import Config, Copy, NameTable, Row


def _linear(ours: str, theirs: str, size: str, width: str) -> tuple[Row, Row]:
    """A matrix and its bias."""
    return (
        Row(f"{ours}.weight", f"{theirs}.weight", (size, width)),
        Row(f"{ours}.bias", f"{theirs}.bias", (size,)),
    )


def _norm(ours: str, theirs: str) -> tuple[Row, Row]:
    return (
        Row(f"{ours}.weight", f"{theirs}.weight", ("hidden",)),
        Row(f"{ours}.bias", f"{theirs}.bias", ("hidden",)),
    )


def _encoder(prefix: str) -> tuple[Row, ...]:
    """Embeddings and layers; `prefix` is how their class calls the encoder."""
    embeddings = f"{prefix}embeddings"
    ours, theirs = "layers.{layer}", f"{prefix}encoder.layer.{{layer}}"
    attention = f"{theirs}.attention"
    return (
        Row("embed.weight", f"{embeddings}.word_embeddings.weight", ("vocab", "hidden")),
        Row(
            "embed.positions.weight",
            f"{embeddings}.position_embeddings.weight",
            ("positions", "hidden"),
        ),
        Row(
            "embed.token_types.weight",
            f"{embeddings}.token_type_embeddings.weight",
            ("types", "hidden"),
        ),
        *_norm("embed_norm", f"{embeddings}.LayerNorm"),
        *_linear(f"{ours}.self_attn.q_proj", f"{attention}.self.query", "hidden", "hidden"),
        *_linear(f"{ours}.self_attn.k_proj", f"{attention}.self.key", "hidden", "hidden"),
        *_linear(f"{ours}.self_attn.v_proj", f"{attention}.self.value", "hidden", "hidden"),
        *_linear(f"{ours}.self_attn.o_proj", f"{attention}.output.dense", "hidden", "hidden"),
        *_norm(f"{ours}.post_attention_layernorm", f"{attention}.output.LayerNorm"),
        *_linear(f"{ours}.mlp.up_proj", f"{theirs}.intermediate.dense", "intermediate", "hidden"),
        *_linear(f"{ours}.mlp.down_proj", f"{theirs}.output.dense", "hidden", "intermediate"),
        *_norm(f"{ours}.post_feedforward_layernorm", f"{theirs}.output.LayerNorm"),
    )


_PREDICTIONS = "cls.predictions"
_TIED = "tie_word_embeddings"
_MASKED_LM = (
    *_linear("head_transform.dense", f"{_PREDICTIONS}.transform.dense", "hidden", "hidden"),
    *_norm("head_transform.norm", f"{_PREDICTIONS}.transform.LayerNorm"),
    Row(
        "head.weight",
        f"{_PREDICTIONS}.decoder.weight",
        ("vocab", "hidden"),
        unless=_TIED,
        copy_of="embed.weight",
    ),
    # There are two names for the bias; a head of its own uses the second.
    Row("head.bias", f"{_PREDICTIONS}.bias", ("vocab",), when=_TIED),
    Row("head.bias", f"{_PREDICTIONS}.decoder.bias", ("vocab",), unless=_TIED),
)
_BIASES = (
    Copy(theirs=f"{_PREDICTIONS}.decoder.bias", of=f"{_PREDICTIONS}.bias", when=_TIED),
    Copy(theirs=f"{_PREDICTIONS}.bias", of=f"{_PREDICTIONS}.decoder.bias", unless=_TIED),
)


def _architecture(name: str, *heads: str) -> Architecture:
    """One of their classes.

    Args:
        name: of the class.
        heads: what it has on the encoder, as our config calls them.
    """
    prefix = "" if name == "BertModel" else "bert."
    rows = _encoder(prefix)
    if "pooler" in heads:
        rows += _linear("pooler.dense", f"{prefix}pooler.dense", "hidden", "hidden")
    if "next_sentence" in heads:
        rows += _linear("row_head", "cls.seq_relationship", "sentences", "hidden")
    if "classifier" in heads:
        rows += _linear("row_head", "classifier", "labels", "hidden")
    has_predictions = "masked_lm" in heads
    table = NameTable(
        rows=rows + (_MASKED_LM if has_predictions else ()),
        derived=(f"{prefix}embeddings.position_ids",),
        copies=_BIASES if has_predictions else (),
        old_names=((r"\.LayerNorm\.gamma$", ".LayerNorm.weight"),
                   (r"\.LayerNorm\.beta$", ".LayerNorm.bias")),
    )  # fmt: skip
    return Architecture(name, table, {"heads": list(heads)}, generates=False)


def _held(model: Config, names: Collection[str], notes: list[str]) -> Config:
    """Our config with the heads that there are weights for.

    A bare encoder may have been saved without its pooler, and published models that call
    themselves masked language models have the other head of pretraining as well.
    """
    heads = model["heads"]
    if heads == ["pooler"] and "pooler.dense.weight" not in names:
        notes.append("heads: taken without the pooler, for which there are no weights")
        return model | {"heads": []}
    if heads == ["masked_lm"] and "cls.seq_relationship.weight" in names:
        notes.append("heads: taken with next_sentence and the pooler, which have weights as well")
        return model | {"heads": ["pooler", "masked_lm", "next_sentence"]}
    return model


@dataclass(frozen=True)
class Labels:
    """The number of classes, which config.json gives by naming them."""

    ours: tuple[str, ...] = ("num_labels",)
    theirs: tuple[str, ...] = ("id2label", "label2id", "num_labels")

    def from_hf(self, hf: Mapping[str, Any]) -> Config:
        """Return how many names there are; two where there are none.

        Raises:
            ValueError: the names are no table.
        """
        names = hf.get("id2label")
        if names is None:
            return {"num_labels": count("num_labels", hf.get("num_labels", 2))}
        if not isinstance(names, dict) or not names:
            raise ValueError(f"id2label: must be a table of names, got {names!r}")
        return {"num_labels": len(names)}

    def to_hf(self, model: Config) -> dict[str, Any]:
        """Return names without a meaning, unless there are as many as by default."""
        number = model["num_labels"]
        if number == 2:
            return {}
        names = [f"LABEL_{index}" for index in range(number)]
        return {
            "id2label": {str(index): name for index, name in enumerate(names)},
            "label2id": {name: index for index, name in enumerate(names)},
        }


@dataclass(frozen=True)
class AbsolutePositions:
    """The kind of positions, which versions before 5 could choose."""

    ours: tuple[str, ...] = ()
    theirs: tuple[str, ...] = ("position_embedding_type",)

    def from_hf(self, hf: Mapping[str, Any]) -> Config:
        """Return nothing; raise ValueError where positions are relative."""
        kind = one_of("absolute")
        kind("position_embedding_type", hf.get("position_embedding_type", "absolute"))
        return {}

    def to_hf(self, model: Config) -> dict[str, Any]:
        """Return nothing: they are absolute by default."""
        del model
        return {}


def _sizes(model: Config) -> dict[str, int]:
    return {
        "vocab": model["vocab_size"],
        "hidden": model["hidden_size"],
        "intermediate": model["intermediate_size"],
        "positions": model["max_position_embeddings"],
        "types": model["type_vocab_size"],
        "labels": model["num_labels"],
        "sentences": 2,
    }


def _check_heads(model: Config) -> None:
    if model["hidden_size"] % model["num_attention_heads"]:
        raise ValueError(
            f"num_attention_heads: must divide hidden_size = {model['hidden_size']}, "
            f"got {model['num_attention_heads']}"
        )


BERT = Family(
    model_type="bert",
    config=ConfigTable(
        fields=(
            Field("vocab_size", count, 30522),
            Field("hidden_size", count, 768),
            Field("num_hidden_layers", count, 12),
            Field("num_attention_heads", count, 12),
            Field("intermediate_size", count, 3072),
            Field("hidden_act", one_of("gelu", "gelu_new", "relu"), "gelu"),
            Field("hidden_dropout_prob", probability, 0.1),
            Field("attention_probs_dropout_prob", probability, 0.1),
            Field("classifier_dropout", optional(probability), None),
            Field("max_position_embeddings", count, 512),
            Field("type_vocab_size", count, 2),
            Field("initializer_range", positive, 0.02),
            Field("layer_norm_eps", positive, 1e-12),
            Field("tie_word_embeddings", boolean, True),
        ),
        sizes=_sizes,
        translations=(Labels(), AbsolutePositions()),
        token_ids={"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0},
        only={"add_cross_attention": False, "is_decoder": False},
        no_effect=frozenset({"chunk_size_feed_forward", "problem_type"}),
        checks=(_check_heads,),
    ),
    architectures=(
        _architecture("BertForMaskedLM", "masked_lm"),
        _architecture("BertForPreTraining", "pooler", "masked_lm", "next_sentence"),
        _architecture("BertForNextSentencePrediction", "pooler", "next_sentence"),
        _architecture("BertForSequenceClassification", "pooler", "classifier"),
        _architecture("BertModel", "pooler"),
        _architecture("BertModel"),
    ),
    held=_held,
)
