import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mtron_ckpt
from mtron_ckpt import LocalArray, Metadata, convert_adapter
from mtron_ckpt.cli import main

ADAPTER = {
    "r": 3,
    "lora_alpha": 6.0,
    "lora_dropout": 0.05,
    "use_rslora": True,
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": None,
    "target_modules": ["down_proj", "layers.1.self_attn.q_proj"],
    "modules_to_save": ["layers.0.input_layernorm", "norm"],
    "exclude_modules": [],
    "bias": "none",
}
SHAPES = {
    "layers.0.input_layernorm.weight": (32,),
    "layers.0.mlp.down_proj.lora_A.weight": (3, 48),
    "layers.0.mlp.down_proj.lora_B.weight": (32, 3),
    "layers.1.mlp.down_proj.lora_A.weight": (3, 48),
    "layers.1.mlp.down_proj.lora_B.weight": (32, 3),
    "layers.1.self_attn.q_proj.lora_A.weight": (3, 32),
    "layers.1.self_attn.q_proj.lora_B.weight": (32, 3),
    "norm.weight": (32,),
}


def drawn(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def save_adapter(tmp_path):
    """Writes an mtron checkpoint of adapters."""

    def save(model, adapter=ADAPTER, shapes=SHAPES, **metadata):
        arrays = {f"param/{name}": LocalArray.whole(a) for name, a in drawn(shapes).items()}
        config = {"model": model, "adapter": adapter}
        metadata = Metadata(step=7, config={k: v for k, v in config.items() if v}, **metadata)
        mtron_ckpt.save(tmp_path / "tuned", arrays, metadata).wait()
        return tmp_path / "tuned"

    return save


@pytest.fixture
def peft(tmp_path, model, save_adapter):
    """A directory of PEFT, and a model's directory for which it is."""
    convert_adapter(save_adapter(model), tmp_path / "peft")
    return tmp_path / "peft"


def test_there_and_back(tmp_path, model, save_adapter, save_checkpoint):
    report = convert_adapter(save_adapter(model), tmp_path / "peft")
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert (report.model_type, report.num_tensors, report.notes) == ("llama", 8, ())
    assert report.num_bytes == sum(array.nbytes for array in tensors.values())
    prefix = "base_model.model.model."
    assert sorted(tensors) == sorted(f"{prefix}{name}" for name in SHAPES)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config == {
        **{
            name: ADAPTER[name] for name in ("r", "lora_dropout", "use_rslora", "task_type", "bias")
        },
        "base_model_name_or_path": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 6,
        "modules_to_save": ["model.layers.0.input_layernorm", "model.norm"],
        "peft_type": "LORA",
        "target_modules": ["down_proj", "model.layers.1.self_attn.q_proj"],
    }
    base = save_checkpoint(model)
    convert_adapter(tmp_path / "peft", tmp_path / "back", to="mtron", base=base)
    back = mtron_ckpt.open(tmp_path / "back")
    assert back.config == {"model": model, "adapter": ADAPTER}
    for name, array in drawn(SHAPES).items():
        assert back.read(f"param/{name}").tobytes() == array.tobytes()
    assert len(list(back.names())) == len(SHAPES)


def test_other_things_are_left_behind(tmp_path, model, save_adapter):
    source = save_adapter(model, state={"loader": {"cursor": 1}}, assets={"notes.txt": b"x"})
    notes = convert_adapter(source, tmp_path / "peft").notes
    assert notes == ("left behind: training state (loader)", "left behind: assets (notes.txt)")


def without(name):
    return {key: shape for key, shape in SHAPES.items() if key != name}


@pytest.mark.parametrize(
    ("adapter", "shapes", "message"),
    [
        (None, SHAPES, r"config\.adapter: missing; the checkpoint holds no adapters"),
        ({"r": 0}, SHAPES, "r: must be a positive integer, got 0"),
        ({"r": 4}, SHAPES, "6 of another shape: layers.0.mlp.down_proj.lora_A.weight is"),
        ({"lora_alpha": -1.0}, SHAPES, "lora_alpha: must be a positive finite number"),
        ({"lora_dropout": 1}, SHAPES, r"lora_dropout: must be in \[0, 1\), got 1"),
        ({"use_rslora": 1}, SHAPES, "use_rslora: must be true or false"),
        ({"task_type": 1}, SHAPES, "task_type: must be text or null"),
        ({"bias": "all"}, SHAPES, "bias: only 'none' can be expressed, got 'all'"),
        ({"modules_to_save": []}, SHAPES, r"weight: is neither of an adapter nor of modules_to"),
        ({}, {"norm.weight": (32,)}, "the checkpoint holds no adapters"),
        ({}, without("layers.0.mlp.down_proj.lora_A.weight"), "lora_A.weight: missing, and 0 more"),
        (
            {},
            SHAPES | {"layers.9.mlp.up_proj.lora_A.weight": (3, 4)},
            r"layers\.9\.mlp\.up_proj\.lora_A\.weight: the model has no matrix",
        ),
        (
            {},
            SHAPES | {"embed.lora_A.weight": (3, 281)},
            r"embed\.lora_A\.weight: only linear modules can have adapters, and embed is none",
        ),
    ],
)
def test_what_cannot_be_exported(tmp_path, model, save_adapter, adapter, shapes, message):
    source = save_adapter(model, adapter if adapter is None else ADAPTER | adapter, shapes)
    with pytest.raises(ValueError, match=message):
        convert_adapter(source, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_a_tied_embedding_is_not_exported(tmp_path, model, save_adapter):
    shapes = SHAPES | {"embed.weight": (281, 32)}
    adapter = ADAPTER | {"modules_to_save": [*ADAPTER["modules_to_save"], "embed"]}
    source = save_adapter(model | {"tie_word_embeddings": True}, adapter, shapes)
    with pytest.raises(ValueError, match="embed: was trained, but PEFT would train a copy"):
        convert_adapter(source, tmp_path / "peft")


def test_a_fused_matrix_is_not_exported(tmp_path, save_adapter):
    gpt2 = json.loads(GPT2)
    name = "layers.0.self_attn.q_proj"
    shapes = {f"{name}.lora_A.weight": (3, 12), f"{name}.lora_B.weight": (12, 3)}
    source = save_adapter(gpt2, ADAPTER, shapes)
    message = (
        rf"{name}\.lora_A\.weight: cannot be expressed, because {name}\.weight is not a matrix of "
        r"its own there: transformer\.h\.0\.attn\.c_attn\.weight holds layers\.0\.self_attn\.q_proj"
    )
    with pytest.raises(ValueError, match=message):
        convert_adapter(source, tmp_path / "peft")


GPT2 = """{"model_type": "gpt2", "vocab_size": 17, "n_positions": 8, "n_embd": 12, "n_layer": 1,
"n_head": 3, "n_inner": null, "tie_word_embeddings": true}"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type: only adapters of LoRA can be converted, got 'IA3'"),
        ({"use_dora": True}, r"use_dora: .*\(DoRA\) cannot be converted, got True"),
        ({"rank_pattern": {"q_proj": 1}}, "rank_pattern: ranks that differ between modules"),
        ({"lora_bias": True}, "lora_bias: biases of the adapters cannot"),
        ({"target_parameters": ["x"]}, "target_parameters: "),
        ({"bias": "lora_only"}, "bias: only 'none' can be honoured"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights: the weights of the model",
        ),
        ({"r": 2}, "of another shape: base_model.model.model.layers.0.mlp.down_proj.lora_A"),
        ({"r": "3"}, "r: must be a positive integer, got '3'"),
    ],
)
def test_what_cannot_be_imported(tmp_path, model, peft, save_checkpoint, change, message):
    path = peft / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        convert_adapter(peft, tmp_path / "back", to="mtron", base=save_checkpoint(model))
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.lora_embedding_A": (3, 4)}, "a.lora_embedding_A: belongs to no linear module of its"),
        ({"base_model.model.lm_head.weight": (3, 4)}, "base_model.model.lm_head.weight is"),
        (
            {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": (3, 32)},
            r"layers\.0\.mlp\.up_proj\.lora_B\.weight is missing, and 0 more",
        ),
    ],
)
def test_tensors_that_are_refused(tmp_path, model, peft, save_checkpoint, change, message):
    path = peft / "adapter_model.safetensors"
    save_file(load_file(path) | drawn(change), path)
    with pytest.raises(ValueError, match=message):
        convert_adapter(peft, tmp_path / "back", to="mtron", base=save_checkpoint(model))


def test_unknown_keys_have_no_effect(tmp_path, model, peft, save_checkpoint):
    path = peft / "adapter_config.json"
    more = {"later": 1, "peft_version": "0.21.2", "use_dora": False, "layers_pattern": "layers"}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    report = convert_adapter(peft, tmp_path / "back", to="mtron", base=save_checkpoint(model))
    assert report.notes == ("adapter_config.json: later has no effect",)


def test_files_that_are_missing(tmp_path, model, peft, save_checkpoint):
    with pytest.raises(ValueError, match="base: missing; give the model"):
        convert_adapter(peft, tmp_path / "back", to="mtron")
    with pytest.raises(ValueError, match="to: unknown format, got 'hf'"):
        convert_adapter(peft, tmp_path / "back", to="hf")
    base = save_checkpoint(model)
    (peft / "adapter_model.safetensors").rename(peft / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"no such file \(pickled weights are never read\)"):
        convert_adapter(peft, tmp_path / "back", to="mtron", base=base)
    shutil.rmtree(peft)
    peft.mkdir()
    with pytest.raises(ValueError, match=r"adapter_config\.json: no such file"):
        convert_adapter(peft, tmp_path / "back", to="mtron", base=base)


def test_a_base_of_hugging_face_and_the_command(tmp_path, model, peft, make_hf, capsys):
    base = make_hf(model)
    command = ["convert-adapter", str(peft), str(tmp_path / "back"), "--to", "mtron"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--base", str(base)])
    assert ended.value.code == 0
    assert "adapter of llama, 8 tensors" in capsys.readouterr().out
    assert mtron_ckpt.open(tmp_path / "back").config["adapter"] == ADAPTER
    again = ["convert-adapter", str(tmp_path / "back"), str(peft), "--to", "peft"]
    with pytest.raises(SystemExit):
        main(again)
    assert "already exists" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*again, "--overwrite"])
    assert ended.value.code == 0
