"""From text to a served model by the command lines, checked against transformers."""

import json
import shutil

import numpy as np
import pytest
import torch
import zarr

from mtron_ckpt import open as open_checkpoint
from mtron_ckpt import verify
from mtron_infer import load

PROMPT = "def main(argv):\n    "


@pytest.fixture(scope="module")
def exported(cli, tiny_run, tmp_path_factory):
    """The run's checkpoint as a Hugging Face directory."""
    path = tmp_path_factory.mktemp("exported") / "hf"
    cli.succeed("mtron-ckpt", "convert", tiny_run.checkpoints, path, "--to", "hf")
    return path


@pytest.fixture(scope="module")
def reference(exported):
    """The exported model and tokenizer in transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(exported)


def test_the_checkpoint_verifies_and_inspects(cli, tiny_run):
    assert verify(tiny_run.checkpoints).ok
    shown = cli.succeed("mtron-ckpt", "inspect", tiny_run.checkpoints)
    assert "embed.weight" in shown


def test_plain_zarr_reads_every_weight(tiny_run):
    checkpoint = open_checkpoint(tiny_run.checkpoints)
    (data,) = (checkpoint.path / "data").iterdir()
    with zarr.storage.ZipStore(data, mode="r") as store:
        group = zarr.open(store, mode="r")
        for name in checkpoint.names():
            np.testing.assert_array_equal(group[name][...], checkpoint.read(name))


def test_hugging_face_round_trip_is_bitwise(cli, tiny_run, exported, tmp_path):
    back = tmp_path / "back"
    cli.succeed("mtron-ckpt", "convert", exported, back, "--to", "mtron")
    ours, theirs = open_checkpoint(tiny_run.checkpoints), open_checkpoint(back)
    assert theirs.names("param") == ours.names("param")
    for name in ours.names("param"):
        assert theirs.read(name).tobytes() == ours.read(name).tobytes(), name
    assert theirs.assets["tokenizer.json"] == ours.assets["tokenizer.json"]
    again = tmp_path / "again"
    cli.succeed("mtron-ckpt", "convert", back, again, "--to", "hf")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (again / name).read_bytes() == (exported / name).read_bytes(), name


def test_logits_agree_with_transformers(tiny_run, reference):
    model, tokenizer = reference
    loaded = load(tiny_run.checkpoints)
    ids = tokenizer(PROMPT * 4, return_tensors="pt").input_ids
    assert loaded.tokenizer.encode(PROMPT * 4) == ids[0].tolist()
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(ids), model(ids).logits, rtol=0, atol=1e-5)


def test_greedy_continuations_agree_with_transformers(cli, tiny_run, reference):
    model, tokenizer = reference
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.inference_mode():
        out = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
    expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    arguments = ("--prompt", PROMPT, "--max-tokens", 24, "--temperature", 0)
    result = cli.call("mtron-infer", "generate", tiny_run.checkpoints, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected + "\n" or result.stdout == expected


def test_perplexity_agrees_with_transformers(cli, tiny_run, reference, tmp_path):
    model, tokenizer = reference
    text = (tiny_run.root / "heldout.jsonl").read_text().splitlines()[0]
    text = json.loads(text)["text"]
    data = tmp_path / "one.txt"
    data.write_text(text[:150])
    output = tmp_path / "evaluation"
    cli.succeed(
        "mtron-eval",
        "run",
        tiny_run.checkpoints,
        "--tasks",
        "perplexity",
        "--data",
        data,
        "--output",
        output,
    )
    (report,) = output.glob("*.json")
    ids = [tokenizer.eos_token_id, *tokenizer(text[:150]).input_ids]
    assert len(ids) <= 128, "the text fits one window"
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
    nll = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
    expected = nll / np.log(2) / len(text[:150].encode())
    found = json.loads(report.read_text())
    assert json.dumps(found).count("bits_per_byte")
    value = _find(found, "bits_per_byte")
    assert value == pytest.approx(expected, rel=1e-5)


def _find(node, key):
    """The first value under `key` anywhere in nested JSON, as a number."""
    if isinstance(node, dict):
        if key in node:
            value = node[key]
            return value["value"] if isinstance(value, dict) else value
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            value = _find(child, key)
            if value is not None:
                return value
    return None


def test_a_damaged_checkpoint_is_refused_everywhere(cli, tiny_run, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(tiny_run.checkpoints, root)
    checkpoint = open_checkpoint(root)
    (data,) = (checkpoint.path / "data").iterdir()
    content = bytearray(data.read_bytes())
    weights = checkpoint.read("param/layers.0.mlp.up_proj.weight").tobytes()
    content[content.index(weights) + 1234] ^= 4
    data.write_bytes(content)
    calls = [
        ("mtron-ckpt", "verify", root),
        ("mtron-ckpt", "convert", root, tmp_path / "hf", "--to", "hf"),
        ("mtron-infer", "generate", root, "--prompt", "x", "--max-tokens", 1),
    ]
    for program, *arguments in calls:
        result = cli.call(program, *arguments)
        assert result.returncode not in (0, None), program
        assert data.name in result.stderr + result.stdout, program
        assert "Traceback" not in result.stderr, program
    assert not (tmp_path / "hf").exists()
