from dataclasses import dataclass

import pytest

from mtron_ckpt.conversion.config_table import (
    ConfigTable,
    Field,
    boolean,
    count,
    list_of,
    natural,
    number,
    one_of,
    optional,
    positive,
    probability,
)


@dataclass
class Split:
    """One string of theirs, two fields of ours."""

    ours = ("kind", "gated")
    theirs = ("projection",)

    def from_hf(self, hf):
        kind, _, gate = reversed_parts(hf.get("projection", "relu"))
        return {"kind": kind, "gated": gate == "gated"}

    def to_hf(self, model):
        return {"projection": ("gated-" if model["gated"] else "") + model["kind"]}


def reversed_parts(text):
    gate, dash, kind = text.rpartition("-")
    return kind, dash, gate


def check_fits(model):
    if model["window"] and model["window"] > model["width"]:
        raise ValueError(f"window: must be at most width, got {model['window']}")


def check_even(model):
    if model["width"] % 2:
        raise ValueError(f"model.width: must be even there, got {model['width']}")


TABLE = ConfigTable(
    fields=(
        Field("vocab_size", count),
        Field("width", count, 8, theirs="n_embd", spellings=("hidden_size",)),
        Field("inner", count, lambda model: 4 * model["width"], omit_default=True),
        Field("heads", count, 3, null=lambda model: model["width"]),
        Field("window", optional(natural), 5),
        Field("types", optional(list_of(one_of("full", "sliding"))), None),
        Field("eps", positive, 1e-5),
        Field("scale", number, 1.0),
        Field("tied", boolean, True),
        Field("dropout", probability, 0.1),
    ),
    sizes=lambda model: {"vocab": model["vocab_size"]},
    translations=(Split(),),
    token_ids={"eos_token_id": 50256},
    only={"activation": "gelu", "cross": False},
    ours_only=(Field("residual_dropout", probability, 0.0),),
    no_effect=frozenset({"summary_type"}),
    refused={"prune_heads": "pruned heads"},
    checks=(check_fits,),
    limits=(check_even,),
)
OURS = {
    "vocab_size": 11,
    "width": 8,
    "inner": 32,
    "heads": 3,
    "window": 5,
    "types": None,
    "eps": 1e-5,
    "scale": 1.0,
    "tied": True,
    "dropout": 0.1,
    "eos_token_id": None,
    "kind": "relu",
    "gated": False,
    "residual_dropout": 0.0,
}


def read(notes=None, **hf):
    return TABLE.from_hf({"vocab_size": 11} | hf, [] if notes is None else notes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"width": 6, "inner": 24},
        {"inner": 5, "kind": "silu", "gated": True},
        {"window": None, "types": ["full", "sliding"], "tied": False},
        {"eos_token_id": 3, "residual_dropout": 0.5, "scale": -2.0, "dropout": 0.0},
    ],
)
def test_our_config_survives_the_round_trip(changes):
    assert read(**TABLE.to_hf(OURS | changes)) == OURS | changes


def test_what_config_json_leaves_out_is_what_transformers_takes():
    notes = []
    assert read(notes) == OURS
    assert notes == ["config.json: eos_token_id 50256: the model config keeps None"]
    assert read(n_embd=6)["inner"] == 24
    assert read(heads=None)["heads"] == 8
    assert read(n_embd=None)["width"] == 8
    assert read(window=None)["window"] is None


def test_keys_are_called_as_they_call_them():
    hf = TABLE.to_hf(OURS | {"width": 10, "inner": 40})
    assert (hf["n_embd"], hf["activation"], hf["cross"]) == (10, "gelu", False)
    assert not {"width", "inner", "mtron", "residual_dropout"} & set(hf)
    assert TABLE.to_hf(OURS | {"residual_dropout": 0.5})["mtron"] == {"residual_dropout": 0.5}
    assert read(hidden_size=6)["width"] == 6


def test_keys_without_effect_are_told_unless_they_are_known():
    notes = []
    read(notes, summary_type="x", use_cache=False, colour="red", eos_token_id=1, prune_heads={})
    assert notes == ["config.json: colour has no effect"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vocab_size", None, "vocab_size: must be a positive integer, got None"),
        ("vocab_size", True, "vocab_size: must be a positive integer, got True"),
        ("n_embd", 0, "n_embd: must be a positive integer"),
        ("hidden_size", "8", "hidden_size: must be a positive integer"),
        ("window", -1, "window: must be an integer of at least 0"),
        ("window", 9, "window: must be at most width, got 9"),
        ("types", "full", "types: must be a list"),
        ("types", ["full", "round"], r"types\.1: only 'full', 'sliding' can be honoured"),
        ("eps", 0, "eps: must be a positive finite number"),
        ("scale", float("nan"), "scale: must be a finite number"),
        ("tied", 1, "tied: must be true or false"),
        ("dropout", 1.0, "dropout: must be at least 0 and less than 1"),
        ("activation", "relu", "activation: only 'gelu' can be honoured, got 'relu'"),
        ("activation", None, "activation: only 'gelu' can be honoured"),
        ("cross", True, "cross: only False can be honoured"),
        ("prune_heads", {"1": [2]}, "prune_heads: pruned heads cannot be converted"),
        ("quantization_config", {"bits": 4}, "quantization_config: quantized weights"),
        ("eos_token_id", "</s>", "eos_token_id: must be a token id"),
        ("mtron", {"width": 8}, "mtron: may hold residual_dropout only"),
        ("mtron", {"residual_dropout": 2}, "residual_dropout: must be at least 0"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=message):
        read(**{name: value})


def test_spellings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match=r"n_embd: contradicts another spelling .*hidden_size"):
        read(n_embd=6, hidden_size=8)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (OURS | {"new": 1}, r"model\.new: not known"),
        ({k: v for k, v in OURS.items() if k != "eps"}, r"model\.eps: missing"),
        ({k: v for k, v in OURS.items() if k != "gated"}, r"model\.gated: missing"),
        ({k: v for k, v in OURS.items() if k != "eos_token_id"}, r"model\.eos_token_id: missing"),
        (OURS | {"width": 3, "inner": 12}, r"model\.width: must be even there"),
    ],
)
def test_what_their_format_cannot_say_is_refused_by_name(model, message):
    with pytest.raises(ValueError, match=message):
        TABLE.to_hf(model)
