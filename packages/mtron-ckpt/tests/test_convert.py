import json
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import mtron_ckpt
from mtron_ckpt import LocalArray, Metadata, convert
from mtron_ckpt.conversion.families import FAMILIES
from mtron_ckpt.conversion.hf_source import HuggingFaceSource

FP32_LOGITS = 1e-5
"""Absolute, against another implementation in fp32, for logits of order one."""

MODEL = {
    "model_type": "llama",
    "vocab_size": 281,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
TEXT = "def add(first, second):\n    return first + second  # ünïcode → ok\n"


def make_weights(model, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {
        pair.ours: rng.normal(len(pair.shape) == 1, 0.1, pair.shape).astype(dtype)
        for pair in FAMILIES["llama"].tensors(model, 100)
    }


@pytest.fixture(scope="module")
def tokenizer_json():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MODEL["vocab_size"],
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer.to_str().encode()


def save_checkpoint(root, model=MODEL, weights=None, config=None, state=None, assets=None):
    weights = make_weights(model) if weights is None else weights
    arrays = {f"param/{name}": LocalArray.whole(array) for name, array in weights.items()}
    if state:
        arrays |= {
            f"exp_avg/{name}": LocalArray.whole(np.zeros(array.shape, np.float32))
            for name, array in weights.items()
        }
    metadata = Metadata(
        step=20, config={"model": model} | (config or {}), state=state or {}, assets=assets or {}
    )
    mtron_ckpt.save(root, arrays, metadata).wait()
    return weights


def same(left, right):
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and left.tobytes() == right.tobytes()
    )


def reference_logits(model, weights, tokens):
    """Llama as its authors describe it, in fp64, from our names."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    heads, shared, dim = (
        model[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    angles = np.arange(len(tokens))[:, None] / model["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    cos, sin = (np.tile(f(angles), 2)[:, None] for f in (np.cos, np.sin))

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + model["rms_norm_eps"]) * w[name]

    def rotate(x):
        return x * cos + np.concatenate([-x[..., dim // 2 :], x[..., : dim // 2]], -1) * sin

    x = w["embed.weight"][tokens]
    for i in range(model["num_hidden_layers"]):
        p = f"layers.{i}."
        h = norm(x, p + "input_layernorm.weight")
        q, k, v = (
            (h @ w[f"{p}self_attn.{name}_proj.weight"].T).reshape(len(tokens), -1, dim)
            for name in "qkv"
        )
        q, k, v = rotate(q), *(np.repeat(t, heads // shared, 1) for t in (rotate(k), v))
        scores = np.einsum("ihd,jhd->hij", q, k) / dim**0.5
        scores = np.where(np.tri(len(tokens), dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hij,jhd->ihd", scores / scores.sum(-1, keepdims=True), v)
        x = x + mixed.reshape(len(tokens), -1) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, p + "post_attention_layernorm.weight")
        gate, up = (h @ w[f"{p}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
    head = "embed.weight" if model["tie_word_embeddings"] else "head.weight"
    return norm(x, "norm.weight") @ w[head].T


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_computes_the_same(tmp_path, tokenizer_json, tied):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = MODEL | {"tie_word_embeddings": tied}
    assets = {"tokenizer.json": tokenizer_json}
    weights = save_checkpoint(tmp_path / "root", model, assets=assets)
    convert(tmp_path / "root", tmp_path / "hf", to="hf")

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert loaded.dtype == torch.float32
    from tokenizers import Tokenizer

    ids = Tokenizer.from_str(tokenizer_json.decode()).encode(TEXT).ids
    assert tokenizer(TEXT)["input_ids"] == ids
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.eos_token_id == MODEL["eos_token_id"]
    assert loaded.generation_config.eos_token_id == MODEL["eos_token_id"]
    assert loaded.generation_config.bos_token_id is None
    ids = ids[: MODEL["max_position_embeddings"]]
    with torch.inference_mode():
        logits = loaded(torch.tensor([ids])).logits[0].double().numpy()
    np.testing.assert_allclose(logits, reference_logits(model, weights, ids), atol=FP32_LOGITS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "hidden_dropout": 0.125}])
def test_from_mtron_and_back(tmp_path, tokenizer_json, dtype, changes):
    model = MODEL | changes
    assets = {"tokenizer.json": tokenizer_json}
    weights = save_checkpoint(tmp_path / "a", model, make_weights(model, dtype), assets=assets)
    convert(tmp_path / "a", tmp_path / "hf", to="hf", max_shard_bytes=20_000)
    convert(tmp_path / "hf", tmp_path / "b", to="mtron")
    back = mtron_ckpt.open(tmp_path / "b")
    assert back.config["model"] == model
    assert back.state == {}
    assert back.assets["tokenizer.json"] == tokenizer_json
    assert back.names() == [f"param/{name}" for name in weights]
    for name, array in weights.items():
        assert same(back.read(f"param/{name}"), array)


@pytest.fixture(params=["bfloat16, tied, one file", "float32, untied, sharded"])
def transformers_model(request, tmp_path, tokenizer_json):
    """A directory as `transformers` saves it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    small = request.param.startswith("bfloat16")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=MODEL["vocab_size"],
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=small,
            bos_token_id=None,
            eos_token_id=[0, 5],
        )
    )
    directory = tmp_path / "original"
    model.to(torch.bfloat16 if small else torch.float32).save_pretrained(
        directory, max_shard_size="5GB" if small else "20KB"
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=transformers.tokenization_utils_fast.TokenizerFast.from_str(
            tokenizer_json.decode()
        ),
        eos_token="<|endoftext|>",
    ).save_pretrained(directory)
    return directory


def test_from_transformers_and_back(tmp_path, transformers_model):
    convert(transformers_model, tmp_path / "mtron", to="mtron")
    convert(tmp_path / "mtron", tmp_path / "back", to="hf", max_shard_bytes=30_000)
    with HuggingFaceSource(transformers_model) as old, HuggingFaceSource(tmp_path / "back") as new:
        assert set(old.tensors) == set(new.tensors)
        for name in old.tensors:
            assert same(old.read(name), new.read(name))
    others = [p for p in transformers_model.iterdir() if "model" not in p.name]
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= {p.name for p in others}
    for path in others:
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_changed_model_gets_a_new_config(tmp_path, tokenizer_json):
    """The source's own config comes back only as long as it is true."""
    save_checkpoint(tmp_path / "a", assets={"tokenizer.json": tokenizer_json})
    convert(tmp_path / "a", tmp_path / "hf", to="hf")
    convert(tmp_path / "hf", tmp_path / "b", to="mtron")
    assets = dict(mtron_ckpt.open(tmp_path / "b").assets)
    assert "hf_config.json" in assets
    longer = MODEL | {"max_position_embeddings": 128}
    save_checkpoint(tmp_path / "c", longer, assets=assets)
    convert(tmp_path / "c", tmp_path / "hf2", to="hf")
    config = json.loads((tmp_path / "hf2" / "config.json").read_text())
    assert config["max_position_embeddings"] == 128
    half = make_weights(MODEL, np.float16)
    save_checkpoint(tmp_path / "d", weights=half, assets=assets)
    convert(tmp_path / "d", tmp_path / "hf3", to="hf")
    config = json.loads((tmp_path / "hf3" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float16"


def test_generation_stops_at_the_tokenizers_end_token(tmp_path, tokenizer_json):
    model = MODEL | {"eos_token_id": None}
    assets = {
        "tokenizer.json": tokenizer_json,
        "tokenizer_config.json": b'{"eos_token": {"content": "<|endoftext|>"}}',
    }
    save_checkpoint(tmp_path / "root", model, assets=assets)
    convert(tmp_path / "root", tmp_path / "hf", to="hf")
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": 0}
    tokenizer = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["eos_token_id"] is None


def test_what_stays_behind_is_reported(tmp_path):
    state = {"cursor": {"sample": 5}}
    save_checkpoint(tmp_path / "root", config={"optim": {}}, state=state, assets={"x.txt": b""})
    report = convert(tmp_path / "root", tmp_path / "hf", to="hf")
    assert report.notes == (
        "left behind: optimizer and other arrays (exp_avg)",
        "left behind: training state (cursor)",
        "left behind: config of the run (optim)",
        "left behind: assets (x.txt)",
        "the checkpoint has no tokenizer files",
    )
    assert (report.num_tensors, report.model_type) == (21, "llama")
    assert (report.source_format, report.target_format) == ("mtron", "hf")
    assert sorted(p.name for p in (tmp_path / "hf").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def make_hf(directory, model=MODEL, change=None):
    """A Hugging Face directory by hand; `change` alters its tensors."""
    directory.mkdir()
    family = FAMILIES["llama"]
    (directory / "config.json").write_text(json.dumps(family.config.to_hf(model)))
    weights = make_weights(model)
    tensors = {pair.theirs: weights[pair.ours] for pair in family.tensors(model, 100)}
    tensors = tensors if change is None else change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_buffers_and_tied_copies_are_left_behind(tmp_path):
    def add(tensors):
        inverse = {
            f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)
            for i in range(2)
        }
        return tensors | inverse | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}

    tied = MODEL | {"tie_word_embeddings": True}
    report = convert(make_hf(tmp_path / "hf", tied, add), tmp_path / "out", to="mtron")
    assert report.num_tensors == 20
    assert "left behind: 2 buffers that follow from the config" in report.notes
    assert "left behind: lm_head.weight, a copy of model.embed_tokens.weight" in report.notes


def test_tied_tensors_that_differ_are_refused(tmp_path):
    tied = MODEL | {"tie_word_embeddings": True}
    source = make_hf(
        tmp_path / "hf",
        tied,
        lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1},
    )
    with pytest.raises(ValueError, match=r"lm_head\.weight: differs from model\.embed_tokens"):
        convert(source, tmp_path / "out", to="mtron")
    assert not (tmp_path / "out").exists()


def test_tensors_that_do_not_match_the_config_are_named(tmp_path):
    def change(tensors):
        tensors = dict(tensors)
        del tensors["model.norm.weight"]
        tensors["model.layers.7.mlp.up_proj.weight"] = np.ones((48, 32), np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].copy()
        return tensors

    source = make_hf(tmp_path / "hf", change=change)
    with pytest.raises(ValueError, match=r"1 missing: model\.norm\.weight") as caught:
        convert(source, tmp_path / "out", to="mtron")
    assert "1 left over: model.layers.7.mlp.up_proj.weight" in str(caught.value)
    assert "lm_head.weight is [280, 32] and should be [281, 32]" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_a_checkpoint_that_does_not_match_its_config_is_refused(tmp_path):
    weights = make_weights(MODEL)
    weights["extra.weight"] = weights.pop("norm.weight")
    save_checkpoint(tmp_path / "root", weights=weights)
    with pytest.raises(ValueError, match=r"missing: param/norm\.weight.*over: param/extra\.weight"):
        convert(tmp_path / "root", tmp_path / "out", to="hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root"]


def test_weights_that_transformers_cannot_load_are_refused(tmp_path):
    weights = make_weights(MODEL)
    weights["norm.weight"] = weights["norm.weight"].astype(ml_dtypes.float8_e4m3fn)
    save_checkpoint(tmp_path / "root", weights=weights)
    with pytest.raises(ValueError, match=r"norm\.weight: transformers loads only"):
        convert(tmp_path / "root", tmp_path / "out", to="hf")


def test_a_damaged_source_is_refused_and_nothing_appears(tmp_path):
    save_checkpoint(tmp_path / "root")
    (data,) = (tmp_path / "root").rglob("*.zip")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    with pytest.raises(mtron_ckpt.CorruptCheckpoint):
        convert(tmp_path / "root", tmp_path / "out", to="hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root"]


def test_an_existing_destination_is_replaced_only_when_asked(tmp_path):
    save_checkpoint(tmp_path / "root")
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


def test_a_step_converts_as_well_as_a_root(tmp_path):
    save_checkpoint(tmp_path / "root")
    convert(tmp_path / "root" / "step-00000020", tmp_path / "out", to="hf")
    assert (tmp_path / "out" / "model.safetensors").exists()


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
def test_impossible_requests_are_refused(tmp_path, source, destination, to, message):
    save_checkpoint(tmp_path / "root")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / source, tmp_path / destination, to=to)


def test_a_config_that_promises_too_much_is_refused(tmp_path):
    source = make_hf(tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**12}))
    with pytest.raises(ValueError, match="num_hidden_layers: there are only 21 tensors"):
        convert(source, tmp_path / "out", to="mtron")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_mutated_files_are_refused_or_read(tmp_path, name):
    """Whatever is in a file, the outcome is a converted model or a proper refusal."""
    source = make_hf(tmp_path / "hf")
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
def test_a_broken_tokenizer_is_named(tmp_path, tokenizer_json, name, content):
    save_checkpoint(tmp_path / "root", assets={"tokenizer.json": tokenizer_json} | {name: content})
    with pytest.raises(ValueError, match=name):
        convert(tmp_path / "root", tmp_path / "out", to="hf")
    assert not (tmp_path / "out").exists()


def test_no_torch_is_needed(tmp_path):
    save_checkpoint(tmp_path / "root")
    code = (
        "import sys, mtron_ckpt\n"
        "mtron_ckpt.convert(sys.argv[1], sys.argv[2], to='hf')\n"
        "mtron_ckpt.convert(sys.argv[2], sys.argv[3], to='mtron')\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    paths = [str(tmp_path / name) for name in ("root", "hf", "back")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)


def test_the_function_is_not_hidden_by_a_module():
    import mtron_ckpt.conversion.command

    assert mtron_ckpt.convert is convert
    assert callable(convert)


def command(*arguments):
    script = Path(sys.executable).with_name("mtron-ckpt")
    return subprocess.run([script, *map(str, arguments)], capture_output=True, text=True)


def test_the_command_converts_and_explains_refusals(tmp_path):
    save_checkpoint(tmp_path / "root")
    done = command("convert", tmp_path / "root", tmp_path / "out", "--to", "hf")
    assert done.returncode == 0, done.stderr
    assert "21 tensors" in done.stdout
    again = command("convert", tmp_path / "root", tmp_path / "out", "--to", "hf")
    assert again.returncode != 0
    assert again.stdout == ""
    assert "already exists" in again.stderr
    assert "Traceback" not in again.stderr
    shutil.rmtree(tmp_path / "root")
    (tmp_path / "root").mkdir()
    gone = command("convert", tmp_path / "root", tmp_path / "other", "--to", "hf")
    assert gone.returncode != 0
    assert "holds no checkpoint" in gone.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("to", ["hf", "mtron"])
def test_memory_stays_bounded(tmp_path, to):
    model = MODEL | {
        "vocab_size": 8192,
        "hidden_size": 2048,
        "intermediate_size": 4096,
        "num_hidden_layers": 8,
        "head_dim": 64,
    }
    one = np.ones((), np.float32)
    arrays = {
        f"param/{pair.ours}": LocalArray.whole(np.broadcast_to(one, pair.shape))
        for pair in FAMILIES["llama"].tensors(model, 100)
    }
    pool = mtron_ckpt.StagingPool(limit_bytes=2**28)
    metadata = Metadata(step=0, config={"model": model})
    mtron_ckpt.save(tmp_path / "root", arrays, metadata, pool=pool).wait()
    source = tmp_path / "root"
    if to == "mtron":
        source = tmp_path / "hf"
        convert(tmp_path / "root", source, to="hf")
    code = (
        "import sys, mtron_ckpt\n"
        "report = mtron_ckpt.convert(sys.argv[1], sys.argv[2], to=sys.argv[3])\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        "(peak,) = (int(line.split()[1]) for line in lines if line.startswith('VmHWM'))\n"
        "print(report.num_bytes, peak * 1024)\n"
    )
    arguments = [sys.executable, "-c", code, str(source), str(tmp_path / "out"), to]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    num_bytes, peak = map(int, done.stdout.split())
    bound = 2 * max(array.data.nbytes for array in arrays.values()) + 256 * 2**20
    assert num_bytes > 2 * bound
    assert peak < bound
