import numpy as np
import pytest

from mtron_ckpt import convert
from mtron_ckpt.conversion.hf_source import HuggingFaceSource

FP32_LOGITS = 1e-5
"""Absolute, against another implementation in fp32, for logits of order one."""


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
def test_transformers_computes_the_same(
    tmp_path, model, text, tokenizer_json, make_weights, save_checkpoint, tied
):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model |= {"tie_word_embeddings": tied}
    weights = make_weights(model)
    root = save_checkpoint(model, weights, assets={"tokenizer.json": tokenizer_json})
    convert(root, tmp_path / "hf", to="hf")

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert loaded.dtype == torch.float32
    from tokenizers import Tokenizer

    ids = Tokenizer.from_str(tokenizer_json.decode()).encode(text).ids
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == model["eos_token_id"]
    assert loaded.generation_config.eos_token_id == model["eos_token_id"]
    assert loaded.generation_config.bos_token_id is None
    ids = ids[: model["max_position_embeddings"]]
    with torch.inference_mode():
        logits = loaded(torch.tensor([ids])).logits[0].double().numpy()
    np.testing.assert_allclose(logits, reference_logits(model, weights, ids), atol=FP32_LOGITS)


@pytest.fixture(params=["bfloat16, tied, one file", "float32, untied, sharded"])
def transformers_model(request, tmp_path, model, tokenizer_json):
    """A directory as `transformers` saves it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    small = request.param.startswith("bfloat16")
    torch.manual_seed(0)
    original = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=model["vocab_size"],
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
    original.to(torch.bfloat16 if small else torch.float32).save_pretrained(
        directory, max_shard_size="5GB" if small else "20KB"
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=transformers.tokenization_utils_fast.TokenizerFast.from_str(
            tokenizer_json.decode()
        ),
        eos_token="<|endoftext|>",
    ).save_pretrained(directory)
    return directory


def test_from_transformers_and_back(tmp_path, transformers_model, same):
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
