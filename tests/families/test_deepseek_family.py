"""DeepSeek-V3 against `transformers`: one test per way to configure it, and its further layers."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import mtron_ckpt
from mtron_ckpt.torch_io import to_torch
from mtron_models import Context, FurtherLabels, build, config_from_dict

SMALL = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 20,
    "moe_intermediate_size": 12,  # times 4: their grouped products take multiples of 16 bytes
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "max_position_embeddings": 64,
    "q_lora_rank": 14,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 7,
    "n_routed_experts": 12,
    "n_group": 3,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8,
    "mscale": 0.7,
    "mscale_all_dim": 1.2,
}

CASES = {
    "plain": {},
    "no latent of queries, tied": {"q_lora_rank": None, "tie_word_embeddings": True},
    "biases, halves, wide values": {
        "attention_bias": True, "rope_interleave": False, "v_head_dim": 13},
    "yarn, all experts in one group": {
        "rope_parameters": YARN, "n_group": 1, "topk_group": 1, "norm_topk_prob": False},
    "linear, experts in every layer": {
        "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1000.0},
        "first_k_dense_replace": 0, "n_shared_experts": 1, "routed_scaling_factor": 1.5},
}  # fmt: skip


def their_model(**changes) -> transformers.PreTrainedModel:
    """A small model of `transformers`."""
    return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**SMALL | changes))


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_that_of_transformers(case, check_family, tokens):
    check_family(their_model(**CASES[case]), tokens(2, 19, SMALL["vocab_size"]))


def further_tensors(config: transformers.DeepseekV3Config, layers: int) -> dict[str, Tensor]:
    """Random weights of further layers, named as in published files."""
    theirs = transformers.modeling_layers.MtpModel(their_model(), layers)
    generator = torch.Generator().manual_seed(2)
    found = {}
    for name, tensor in theirs.layers.state_dict().items():
        index, _, rest = name.partition(".")
        there = f"model.layers.{config.num_hidden_layers + int(index)}."
        rest = rest.removeprefix("mtp_block.").replace("post_norm.", "shared_head.norm.")
        drawn = torch.randn(tensor.shape, generator=generator) * 0.1
        if "experts.gate_up_proj" in rest:
            for part, value in zip(("gate", "up"), drawn.chunk(2, dim=1), strict=True):
                found |= by_expert(there, f"{part}_proj", value)
        elif "experts.down_proj" in rest and "shared" not in rest:
            found |= by_expert(there, "down_proj", drawn)
        else:
            found[there + rest] = drawn
    return found


def by_expert(layer: str, name: str, stacked: Tensor) -> dict[str, Tensor]:
    return {
        f"{layer}mlp.experts.{index}.{name}.weight": one.clone()
        for index, one in enumerate(stacked)
    }


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A directory as published: with further layers, which repeat the embedding and the head."""
    folder = tmp_path / "published"
    model = their_model(num_nextn_predict_layers=2)
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights |= further_tensors(model.config, 2)
    for index in (3, 4):
        weights[f"model.layers.{index}.embed_tokens.weight"] = weights["model.embed_tokens.weight"]
        weights[f"model.layers.{index}.shared_head.head.weight"] = weights["lm_head.weight"]
    save_file({name: t.clone() for name, t in weights.items()}, folder / "model.safetensors")
    return folder


def test_further_layers_of_a_published_model_are_kept(published, tmp_path, tokens):
    report = mtron_ckpt.convert(published, tmp_path / "ours", to="mtron")
    assert sum(note.startswith("left behind: model.layers.") for note in report.notes) == 4
    checkpoint = mtron_ckpt.open(tmp_path / "ours")
    config = config_from_dict(checkpoint.config["model"])
    assert config.num_nextn_predict_layers == 2
    shapes = {n.removeprefix("param/"): checkpoint.info(n).shape for n in checkpoint.names("param")}
    assert shapes == config.parameter_shapes()
    ours = build(config, device="cpu")
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(to_torch(checkpoint.read(f"param/{name}")))
    inputs = tokens(2, 9, 61)
    further = FurtherLabels(tokens(2, 18, 61).view(2, 9, 2), torch.full((2, 9, 2), 0.1))
    weights = torch.full((2, 9), 1 / 18)
    loss = ours.train_loss(inputs, inputs, weights, Context(further_labels=further))
    assert loss > ours.eval().train_loss(inputs, inputs, weights) + 0.1

    mtron_ckpt.convert(tmp_path / "ours", tmp_path / "back", to="hf")
    original, back = (load_file(f / "model.safetensors") for f in (published, tmp_path / "back"))
    repeated = {name for name in original if "embed_tokens" in name or "shared_head.head" in name}
    assert set(original) - set(back) == repeated - {"model.embed_tokens.weight"}
    assert all(torch.equal(original[name], tensor) for name, tensor in back.items())
    main = transformers.DeepseekV3ForCausalLM.from_pretrained(tmp_path / "back")
    assert torch.allclose(main(input_ids=inputs).logits, ours(inputs), atol=2e-5)


def test_further_layers_that_the_files_lack_are_none(tmp_path):
    their_model(num_nextn_predict_layers=1).save_pretrained(tmp_path / "theirs")
    report = mtron_ckpt.convert(tmp_path / "theirs", tmp_path / "ours", to="mtron")
    assert any(note.startswith("num_nextn_predict_layers: taken as 0") for note in report.notes)
    checkpoint = mtron_ckpt.open(tmp_path / "ours")
    assert checkpoint.config["model"]["num_nextn_predict_layers"] == 0
    mtron_ckpt.convert(tmp_path / "ours", tmp_path / "back", to="hf")
    configs = [(tmp_path / name / "config.json").read_text() for name in ("theirs", "back")]
    assert json.loads(configs[0]) == json.loads(configs[1])
