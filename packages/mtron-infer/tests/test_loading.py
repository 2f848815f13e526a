import shutil

import pytest
import torch

from mtron_infer import Engine, SamplingParams, load

GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


def test_what_was_saved_comes_back(checkpoint, model, tokenizer):
    loaded = load(checkpoint)
    assert loaded.step == 20
    assert loaded.config == model.config
    assert not loaded.model.training
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))
    text = "def add(日本 😀"
    assert loaded.tokenizer.encode(text) == tokenizer.encode(text)
    assert (loaded.tokenizer.eos_id, loaded.tokenizer.vocab_size) == (0, 300)


def test_it_generates(checkpoint, model, reference, tokenizer):
    loaded = load(str(checkpoint))
    (completion,) = Engine(loaded.model, loaded.tokenizer).generate(["def add"], GREEDY)
    assert completion.token_ids == reference.greedy_loop(model, tokenizer.encode("def add"), 12)


def test_root_means_the_newest_step(make_model, tokenizer_files, write_checkpoint, tmp_path):
    model = make_model()
    first = write_checkpoint(tmp_path, model, tokenizer_files, step=5)
    with torch.no_grad():
        model.norm.weight.fill_(2.0)
    write_checkpoint(tmp_path, model, tokenizer_files, step=10)
    assert (load(tmp_path).step, load(first).step) == (10, 5)
    assert load(first).model.norm.weight[0].item() == 1.0


def test_tied_models_stay_tied(make_model, tokenizer_files, write_checkpoint, tmp_path):
    write_checkpoint(tmp_path, make_model(tie_word_embeddings=True), tokenizer_files)
    loaded = load(tmp_path).model
    assert loaded.head.weight is loaded.embed.weight


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (torch.float64, "auto", torch.float64),
        (torch.float32, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.float32),
        (torch.bfloat16, "bfloat16", torch.bfloat16),
        (torch.float32, "float64", torch.float64),
    ],
)
def test_types(stored, asked, expected, model, tokenizer_files, write_checkpoint, tmp_path):
    write_checkpoint(tmp_path, model, tokenizer_files, dtype=stored)
    loaded = load(tmp_path, dtype=asked, device="cpu")
    for name, parameter in loaded.model.named_parameters():
        assert parameter.dtype == expected
        assert torch.equal(parameter, model.get_parameter(name).to(stored).to(expected))


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "file.txt").write_text("no checkpoint")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "file.txt"):
        with pytest.raises((ValueError, OSError), match=path.name):
            load(path)


def test_damage_is_refused(checkpoint, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(checkpoint, root)
    (data,) = root.glob("step-*/data/*")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(ValueError, match="fails its checksum"):
        load(root)


def test_parts_that_do_not_fit_are_named(
    model, make_model, tokenizer_files, write_checkpoint, tmp_path
):
    config = {"model": model.config.model_dump(mode="json")}
    cases = {
        "no section 'model'": ({}, tokenizer_files),
        "has no tokenizer": (config, {}),
        "its tokenizer has 300 tokens, but its model only 299": (
            {"model": config["model"] | {"vocab_size": 299}},
            tokenizer_files,
        ),
        r"embed.weight has the shape \(300, 32\), .* says \(301, 32\)": (
            {"model": config["model"] | {"vocab_size": 301}},
            tokenizer_files,
        ),
        "lacks 9 parameters: layers.2.input_layernorm.weight": (
            {"model": config["model"] | {"num_hidden_layers": 3}},
            tokenizer_files,
        ),
        "has, unlike its configuration, 9 parameters": (
            {"model": config["model"] | {"num_hidden_layers": 1}},
            tokenizer_files,
        ),
        "unknown model family, got 'lama'": (
            {"model": config["model"] | {"model_type": "lama"}},
            tokenizer_files,
        ),
    }
    for number, (message, (stored, files)) in enumerate(cases.items()):
        write_checkpoint(tmp_path / str(number), model, files, config=stored)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / str(number))


def test_devices(checkpoint):
    assert load(checkpoint, device="cpu").model.embed.weight.device.type == "cpu"
    with pytest.raises(ValueError, match="device: 'warp' is no torch device"):
        load(checkpoint, device="warp")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no GPU"):
            load(checkpoint, device="cuda")
