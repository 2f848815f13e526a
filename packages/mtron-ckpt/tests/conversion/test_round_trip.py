import json
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import mtron_ckpt
from mtron_ckpt import LocalArray, Metadata, Writers, convert


@pytest.fixture
def assets(tokenizer_json):
    return {"tokenizer.json": tokenizer_json}


def read_json(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "hidden_dropout": 0.125}])
def test_from_mtron_and_back(
    tmp_path, model, assets, make_weights, save_checkpoint, same, dtype, changes
):
    model |= changes
    weights = make_weights(model, dtype)
    root = save_checkpoint(model, weights, assets=assets)
    convert(root, tmp_path / "hf", to="hf", max_shard_bytes=20_000)
    convert(tmp_path / "hf", tmp_path / "back", to="mtron")
    back = mtron_ckpt.open(tmp_path / "back")
    assert back.config["model"] == model
    assert back.state == {}
    assert back.assets["tokenizer.json"] == assets["tokenizer.json"]
    assert back.names() == [f"param/{name}" for name in weights]
    for name, array in weights.items():
        assert same(back.read(f"param/{name}"), array)


def test_from_several_writers(tmp_path, model, make_weights, save_checkpoint, same):
    weights = make_weights(model)
    convert(save_checkpoint(model, weights), tmp_path / "one", to="hf")

    def save(rank):
        arrays = {}
        for name, value in weights.items():
            cut = len(value) // 3
            part = value[cut:] if rank else value[:cut]
            offset = (rank * cut, *[0] * (value.ndim - 1))
            arrays[f"param/{name}"] = LocalArray(part, value.shape, offset)
        metadata, writers = Metadata(20, {"model": model}), Writers(rank, 2, "session", 60)
        return mtron_ckpt.save(tmp_path / "two", arrays, metadata, writers=writers).wait()

    with ThreadPoolExecutor(2) as pool:
        (_, step) = pool.map(save, range(2))
    assert mtron_ckpt.open(step).record("param/embed.weight").pieces is not None
    convert(tmp_path / "two", tmp_path / "other", to="hf")
    name = "model.safetensors"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.fixture
def imported_assets(tmp_path, model, assets, save_checkpoint):
    """The assets of a checkpoint that came from Hugging Face."""
    root = save_checkpoint(model, assets=assets)
    convert(root, tmp_path / "hf", to="hf")
    convert(tmp_path / "hf", tmp_path / "imported", to="mtron")
    return dict(mtron_ckpt.open(tmp_path / "imported").assets)


def test_the_sources_config_comes_back_unchanged(tmp_path, imported_assets, save_checkpoint, model):
    assert json.loads(imported_assets["hf_config.json"]) == read_json(tmp_path / "hf/config.json")
    foreign = json.loads(imported_assets["hf_config.json"]) | {"use_cache": False}
    assets = imported_assets | {"hf_config.json": json.dumps(foreign).encode()}
    root = save_checkpoint(model, assets=assets, name="same")
    convert(root, tmp_path / "out", to="hf")
    assert (tmp_path / "out" / "config.json").read_bytes() == assets["hf_config.json"]


def test_a_changed_model_gets_a_new_config(tmp_path, imported_assets, save_checkpoint, model):
    longer = model | {"max_position_embeddings": 128}
    root = save_checkpoint(longer, assets=imported_assets, name="longer")
    convert(root, tmp_path / "out", to="hf")
    assert read_json(tmp_path / "out" / "config.json")["max_position_embeddings"] == 128


def test_changed_weights_get_a_new_config(
    tmp_path, imported_assets, make_weights, save_checkpoint, model
):
    weights = make_weights(model, np.float16)
    root = save_checkpoint(model, weights, assets=imported_assets, name="half")
    convert(root, tmp_path / "out", to="hf")
    config = read_json(tmp_path / "out" / "config.json")
    assert config["dtype"] == config["torch_dtype"] == "float16"


def test_generation_stops_at_the_tokenizers_end_token(tmp_path, model, assets, save_checkpoint):
    assets["tokenizer_config.json"] = b'{"eos_token": {"content": "<|endoftext|>"}}'
    root = save_checkpoint(model | {"eos_token_id": None}, assets=assets)
    convert(root, tmp_path / "out", to="hf")
    assert read_json(tmp_path / "out" / "generation_config.json") == {"eos_token_id": 0}
    assert read_json(tmp_path / "out" / "config.json")["eos_token_id"] is None
    tokenizer = read_json(tmp_path / "out" / "tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_what_stays_behind_is_reported(tmp_path, model, save_checkpoint):
    state = {"cursor": {"sample": 5}}
    root = save_checkpoint(model, config={"optim": {}}, state=state, assets={"x.txt": b""})
    report = convert(root, tmp_path / "out", to="hf")
    assert report.notes == (
        "left behind: optimizer and other arrays (exp_avg)",
        "left behind: training state (cursor)",
        "left behind: config of the run (optim)",
        "left behind: assets (x.txt)",
        "the checkpoint has no tokenizer files",
    )
    assert (report.num_tensors, report.model_type) == (21, "llama")
    assert (report.source_format, report.target_format) == ("mtron", "hf")
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["config.json", "generation_config.json", "model.safetensors"]


def test_buffers_and_tied_copies_are_left_behind(tmp_path, model, make_hf):
    def add(tensors):
        inverse = {
            f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)
            for i in range(2)
        }
        return tensors | inverse | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}

    source = make_hf(model | {"tie_word_embeddings": True}, add)
    report = convert(source, tmp_path / "out", to="mtron")
    assert report.num_tensors == 20
    assert "left behind: 2 buffers that follow from the config" in report.notes
    assert "left behind: lm_head.weight, a copy of model.embed_tokens.weight" in report.notes


def test_a_step_converts_as_well_as_a_root(tmp_path, model, save_checkpoint):
    convert(save_checkpoint(model) / "step-00000020", tmp_path / "out", to="hf")
    assert (tmp_path / "out" / "model.safetensors").exists()
