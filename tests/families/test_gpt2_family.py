"""GPT-2 against `transformers`: one test per way to configure it."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mtron_ckpt

SMALL = {
    "vocab_size": 61,
    "n_positions": 24,
    "n_embd": 30,
    "n_layer": 2,
    "n_head": 5,
    "bos_token_id": 3,
    "eos_token_id": 60,
}
CASES = {
    "tied": {},
    "untied, three heads": {"n_embd": 24, "n_head": 3, "tie_word_embeddings": False},
    "inner width, other dropout": {"n_inner": 50, "attn_pdrop": 0.0, "resid_pdrop": 0.3},
    "exact gelu, scaled by layer": {
        "activation_function": "gelu", "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": True, "layer_norm_epsilon": 1e-3},
    "unscaled, one head": {"scale_attn_weights": False, "n_head": 1},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_that_of_transformers(case, check_family, tokens):
    config = transformers.GPT2Config(**SMALL | CASES[case])
    model = transformers.GPT2LMHeadModel(config)
    check_family(model, tokens(2, 19, SMALL["vocab_size"]))


def test_files_of_the_base_model_are_read(tmp_path):
    """The published files: no prefix, and the causal masks beside the weights."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL))
    model.save_pretrained(tmp_path / "new")
    model.save_pretrained(tmp_path / "old")
    weights = load_file(tmp_path / "new" / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    for layer in range(2):
        old[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
    save_file(old, tmp_path / "old" / "model.safetensors", metadata={"format": "pt"})
    for name in ("new", "old"):
        mtron_ckpt.convert(tmp_path / name, tmp_path / f"{name}_ours", to="mtron")
    ours = [mtron_ckpt.open(tmp_path / f"{name}_ours") for name in ("new", "old")]
    assert ours[0].config == ours[1].config
    for name in ours[0].names("param"):
        assert (ours[0].read(name) == ours[1].read(name)).all(), name
