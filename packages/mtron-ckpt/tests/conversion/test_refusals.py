import json

import ml_dtypes
import numpy as np
import pytest

import mtron_ckpt
from mtron_ckpt import convert


def test_tied_tensors_that_differ_are_refused(tmp_path, model, make_hf):
    source = make_hf(
        model | {"tie_word_embeddings": True},
        lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1},
    )
    with pytest.raises(ValueError, match=r"lm_head\.weight: differs from model\.embed_tokens"):
        convert(source, tmp_path / "out", to="mtron")
    assert not (tmp_path / "out").exists()


def test_tensors_that_do_not_match_the_config_are_named(tmp_path, model, make_hf):
    def change(tensors):
        tensors = dict(tensors)
        del tensors["model.norm.weight"]
        tensors["model.layers.7.mlp.up_proj.weight"] = np.ones((48, 32), np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].copy()
        return tensors

    source = make_hf(model, change)
    with pytest.raises(ValueError, match=r"1 missing: model\.norm\.weight") as caught:
        convert(source, tmp_path / "out", to="mtron")
    assert "1 left over: model.layers.7.mlp.up_proj.weight" in str(caught.value)
    assert "lm_head.weight is [280, 32] and should be [281, 32]" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_a_checkpoint_that_does_not_match_its_config_is_refused(
    tmp_path, model, make_weights, save_checkpoint
):
    weights = make_weights(model)
    weights["extra.weight"] = weights.pop("norm.weight")
    save_checkpoint(model, weights)
    with pytest.raises(ValueError, match=r"missing: param/norm\.weight.*over: param/extra\.weight"):
        convert(tmp_path / "root", tmp_path / "out", to="hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root"]


def test_weights_that_transformers_cannot_load_are_refused(
    tmp_path, model, make_weights, save_checkpoint
):
    weights = make_weights(model)
    weights["norm.weight"] = weights["norm.weight"].astype(ml_dtypes.float8_e4m3fn)
    save_checkpoint(model, weights)
    with pytest.raises(ValueError, match=r"norm\.weight: transformers loads only"):
        convert(tmp_path / "root", tmp_path / "out", to="hf")


def test_a_damaged_source_is_refused_and_nothing_appears(tmp_path, model, save_checkpoint):
    save_checkpoint(model)
    (data,) = (tmp_path / "root").rglob("*.zip")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    with pytest.raises(mtron_ckpt.CorruptCheckpoint):
        convert(tmp_path / "root", tmp_path / "out", to="hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root"]


def test_an_existing_destination_is_replaced_only_when_asked(tmp_path, model, save_checkpoint):
    save_checkpoint(model)
    convert(tmp_path / "root", tmp_path / "out", to="hf")
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(ValueError, match=r"out: already exists"):
        convert(tmp_path / "root", tmp_path / "out", to="hf")
    assert (tmp_path / "out" / "mine.txt").exists()
    convert(tmp_path / "root", tmp_path / "out", to="hf", overwrite=True)
    assert not (tmp_path / "out" / "mine.txt").exists()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="is not a checkpoint and will not be replaced"):
        convert(tmp_path / "root", tmp_path / "precious", to="hf", overwrite=True)


@pytest.mark.parametrize(
    ("source", "destination", "to", "message"),
    [
        ("root", "out", "gguf", "to: unknown format, got 'gguf'"),
        ("root", "out", "mtron", "is in mtron format already"),
        ("nowhere", "out", "hf", "nowhere: no such directory"),
        ("empty", "out", "hf", "empty: holds no checkpoint"),
        ("root/step-00000020/MANIFEST.json", "out", "hf", "not a directory"),
        ("root", "root", "hf", "overlap"),
        ("root", "root/inside", "hf", "overlap"),
        ("root/step-00000020", "root", "hf", "overlap"),
    ],
)
def test_impossible_requests_are_refused(
    tmp_path, model, save_checkpoint, source, destination, to, message
):
    save_checkpoint(model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / source, tmp_path / destination, to=to)


def test_a_config_that_promises_too_much_is_refused(tmp_path, model, make_hf):
    source = make_hf(model)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**12}))
    with pytest.raises(ValueError, match="num_hidden_layers: there are only 21 tensors"):
        convert(source, tmp_path / "out", to="mtron")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_mutated_files_are_refused_or_read(tmp_path, model, make_hf, name):
    """Whatever is in a file, the outcome is a converted model or a proper refusal."""
    source = make_hf(model)
    good = (source / name).read_bytes()
    header = min(len(good), 2500)
    rng = np.random.default_rng(3)
    for trial in range(120):
        content = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(0, header)] = rng.choice([*b'0123456789,:{}[]"-.aT', 0, 255])
        cut = rng.integers(0, len(content)) if trial % 10 == 0 else len(content)
        (source / name).write_bytes(bytes(content[:cut]))
        try:
            convert(source, tmp_path / "out", to="mtron", overwrite=True)
        except (ValueError, OSError) as error:
            assert str(error)
    assert {path.name for path in tmp_path.iterdir()} <= {"hf", "out"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b'{"model": 5}'),
        ("tokenizer_config.json", b"5"),
    ],
)
def test_a_broken_tokenizer_is_named(
    tmp_path, model, tokenizer_json, save_checkpoint, name, content
):
    save_checkpoint(model, assets={"tokenizer.json": tokenizer_json} | {name: content})
    with pytest.raises(ValueError, match=name):
        convert(tmp_path / "root", tmp_path / "out", to="hf")
    assert not (tmp_path / "out").exists()
