"""Whole conversions of a family that has everything a table can say."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mtron_ckpt
from mtron_ckpt import convert
from mtron_ckpt.conversion import families
from mtron_ckpt.conversion.config_table import ConfigTable, Field, boolean, count
from mtron_ckpt.conversion.families import Family
from mtron_ckpt.conversion.families.base import Architecture
from mtron_ckpt.conversion.names import Copy, NameTable, Row


def table(prefix, *more):
    here, there = "layers.{layer}.", prefix + "h.{layer}."
    experts, embedding = ("experts", "inner", "hidden"), ("vocab", "hidden")
    return NameTable(
        rows=(
            Row("embed.weight", f"{prefix}wte", embedding),
            Row(here + "q", there + "qk", ("hidden", "hidden"), transposed=True, fused=0),
            Row(here + "k", there + "qk", (2, "hidden"), transposed=True, fused=0),
            Row(here + "bias", there + "bias", ("hidden",), when="with_bias"),
            Row(here + "up", there + "up", ("inner", "hidden"), layers="dense"),
            Row(here + "experts", there + "mlp.{expert}.w", experts, layers="sparse"),
            Row("extra.{layer}.w", f"{prefix}h.{{layer}}.w", ("hidden",), layers="extra"),
            Row("head.weight", "lm_head", embedding, unless="tied", copy_of="embed.weight"),
            *more,
        ),
        derived=(there + "mask",),
        copies=(
            Copy("decoder.weight", f"{prefix}wte"),
            Copy(f"{prefix}h.{{layer}}.wte", f"{prefix}wte", layers="extra"),
        ),
        old_names=((r"^(wte|h)\b", prefix + r"\1"), (r"\.gamma$", ".w")),
    )


SCORE = Row("score", "score.weight", (2, "hidden"))
FAMILY = Family(
    model_type="special",
    config=ConfigTable(
        fields=(
            Field("vocab_size", count),
            Field("hidden_size", count),
            Field("num_hidden_layers", count),
            Field("num_dense", count),
            Field("num_extra", count),
            Field("num_experts", count),
            Field("with_bias", boolean, False),
            Field("tied", boolean, False),
        ),
        sizes=lambda model: {
            "vocab": model["vocab_size"],
            "hidden": model["hidden_size"],
            "inner": 2 * model["hidden_size"],
            "experts": model["num_experts"],
        },
    ),
    architectures=(
        Architecture("SpecialForCausalLM", table("transformer."), {"head": "tokens"}),
        Architecture("SpecialForScores", table("base.", SCORE), {"head": "scores"}, False),
    ),
    layer_sets={
        "dense": lambda model: range(model["num_dense"]),
        "sparse": lambda model: range(model["num_dense"], model["num_hidden_layers"]),
        "extra": lambda model: [
            (index, model["num_hidden_layers"] + index) for index in range(model["num_extra"])
        ],
    },
    layer_counts=("num_hidden_layers", "num_extra"),
)
MODEL = {
    "model_type": "special",
    "head": "tokens",
    "vocab_size": 11,
    "hidden_size": 6,
    "num_hidden_layers": 3,
    "num_dense": 1,
    "num_extra": 2,
    "num_experts": 3,
    "with_bias": True,
    "tied": False,
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "special", FAMILY)


def weights_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, {"transformer.h.1.mlp.2.w", "transformer.h.0.up", "transformer.h.4.w", "lm_head"}),
        ({"with_bias": False, "tied": True, "num_dense": 2}, {"transformer.h.1.up"}),
        ({"head": "scores"}, {"base.h.2.bias", "score.weight"}),
    ],
)
def test_there_and_back(tmp_path, save_checkpoint, make_weights, same, changes, names):
    model = MODEL | changes
    weights = make_weights(model, ml_dtypes.bfloat16)
    convert(save_checkpoint(model, weights), tmp_path / "hf", to="hf")
    assert names <= set(weights_of(tmp_path / "hf"))
    convert(tmp_path / "hf", tmp_path / "back", to="mtron")
    back = mtron_ckpt.open(tmp_path / "back")
    assert back.config["model"] == model
    assert back.names() == [f"param/{name}" for name in weights]
    assert all(same(back.read(f"param/{name}"), array) for name, array in weights.items())


def test_layers_come_one_after_another_and_have_what_their_kind_has(make_weights):
    names = list(FAMILY.tensors(MODEL, 100).ours)
    first, second = ([name for name in names if name.startswith(f"layers.{i}.")] for i in range(2))
    assert names[1:9] == first + second
    assert first == [f"layers.0.{name}" for name in ("q", "k", "bias", "up")]
    assert second == [f"layers.1.{name}" for name in ("q", "k", "bias", "experts")]
    assert "head.weight" not in FAMILY.tensors(MODEL | {"tied": True}, 100).ours


def test_a_generation_config_is_for_models_that_generate(tmp_path, save_checkpoint):
    convert(save_checkpoint(MODEL), tmp_path / "tokens", to="hf")
    assert (tmp_path / "tokens" / "generation_config.json").exists()
    convert(save_checkpoint(MODEL | {"head": "scores"}, name="s"), tmp_path / "scores", to="hf")
    assert not (tmp_path / "scores" / "generation_config.json").exists()


@pytest.fixture
def old_file(make_hf):
    """Writes a model as old versions called its tensors; `change` alters them."""

    def make(change=lambda tensors: tensors, **changes):
        def rename(tensors):
            tensors = {n.removeprefix("transformer."): v for n, v in tensors.items()}
            tensors = {
                n.removesuffix(".w") + ".gamma" if n in ("h.3.w", "h.4.w") else n: v
                for n, v in tensors.items()
            }
            tensors |= {n: tensors["wte"].copy() for n in ("decoder.weight", "h.3.wte")}
            tensors |= {f"h.{i}.mask": np.ones((1, 4), np.float32) for i in range(3)}
            return change(tensors)

        return make_hf(MODEL | changes, rename)

    return make


def test_old_names_buffers_and_copies(tmp_path, old_file, make_weights, same):
    report = convert(old_file(), tmp_path / "out", to="mtron")
    checkpoint = mtron_ckpt.open(tmp_path / "out")
    for name, array in make_weights(MODEL).items():
        assert same(checkpoint.read(f"param/{name}"), array)
    assert "left behind: 3 buffers that follow from the config" in report.notes
    assert "left behind: decoder.weight, a copy of transformer.wte" in report.notes
    assert "left behind: transformer.h.3.wte, a copy of transformer.wte" in report.notes


def without(name):
    return lambda tensors: {n: value for n, value in tensors.items() if n != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"decoder.weight": t["wte"] + 1}, r"decoder\.weight: differs from wte"),
        (lambda t: t | {"transformer.wte": t["wte"]}, "both called transformer.wte today"),
        (without("h.1.mlp.2.w"), r"1 missing: transformer\.h\.1\.mlp\.2\.w"),
        (without("h.4.gamma"), r"1 missing: transformer\.h\.4\.w"),
        (
            lambda t: t | {"h.1.mlp.2.w": t["h.1.mlp.2.w"].astype(np.float16)},
            r"layers\.1\.experts: its parts must be of one dtype",
        ),
        (
            lambda t: t | {"h.0.qk": t["h.0.qk"].T.copy()},
            r"h\.0\.qk is \[8, 6\] and should be \[6, 8\]",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(tmp_path, old_file, change, message):
    with pytest.raises(ValueError, match=message):
        convert(old_file(change), tmp_path / "out", to="mtron")
    assert not (tmp_path / "out").exists()


def test_parts_of_different_dtypes_are_refused_on_the_way_out(
    tmp_path, save_checkpoint, make_weights
):
    weights = make_weights(MODEL)
    weights["layers.0.k"] = weights["layers.0.k"].astype(np.float16)
    save_checkpoint(MODEL, weights)
    with pytest.raises(ValueError, match=r"transformer\.h\.0\.qk: its parts .* layers\.0\.k"):
        convert(tmp_path / "root", tmp_path / "out", to="hf")


@pytest.mark.parametrize("field", ["num_hidden_layers", "num_extra", "num_experts"])
def test_a_config_that_promises_too_much_costs_nothing(tmp_path, make_hf, field):
    source = make_hf(MODEL)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {field: 10**9}))
    with pytest.raises(ValueError, match=r"there are only|asks for more than"):
        convert(source, tmp_path / "out", to="mtron")


def test_no_architecture_means_the_first_and_others_are_refused(tmp_path, make_hf):
    source = make_hf(MODEL)
    config = json.loads((source / "config.json").read_text())
    del config["architectures"]
    (source / "config.json").write_text(json.dumps(config))
    convert(source, tmp_path / "out", to="mtron")
    assert mtron_ckpt.open(tmp_path / "out").config["model"]["head"] == "tokens"
    for names in (["SpecialModel"], ["SpecialForCausalLM", "SpecialForScores"]):
        (source / "config.json").write_text(json.dumps(config | {"architectures": names}))
        with pytest.raises(ValueError, match="only SpecialForCausalLM or SpecialForScores"):
            convert(source, tmp_path / "other", to="mtron")


def test_a_model_without_a_class_there_is_refused(tmp_path, save_checkpoint, make_weights):
    save_checkpoint(MODEL | {"head": "images"}, make_weights(MODEL))
    with pytest.raises(ValueError, match=r"none of the architectures .* got head = 'images'"):
        convert(tmp_path / "root", tmp_path / "out", to="hf")


def test_a_copy_may_be_left_out(tmp_path, make_hf):
    source = make_hf(MODEL | {"tied": True})
    tensors = weights_of(source)
    assert "lm_head" not in tensors
    save_file(
        tensors | {"lm_head": tensors["transformer.wte"].copy()}, source / "model.safetensors"
    )
    report = convert(source, tmp_path / "out", to="mtron")
    assert "left behind: lm_head, a copy of transformer.wte" in report.notes
