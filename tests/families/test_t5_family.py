"""T5, its version 1.1 and kin against `transformers`, with padding on both sides."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mtron_ckpt
from mtron_models import Context

SMALL = {
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 20,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}
SOURCE, TARGET = 23, 17
SOURCE_MASK = torch.arange(SOURCE) < torch.tensor([23, 14])[:, None]
TARGET_MASK = torch.arange(TARGET) < torch.tensor([17, 9])[:, None]
# Each row is a document and its padding another one, which is empty in the rows that are full.
OURS = Context(
    cu_seqlens=torch.tensor([0, 17, 17, 26, 34]),
    memory_cu_seqlens=torch.tensor([0, 23, 23, 37, 46]),
)
VERSION_1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

CASES = {
    "version 1.0": {"d_kv": 10},
    "version 1.0, one head, deeper decoder": {
        "num_heads": 1, "num_layers": 1, "num_decoder_layers": 3, "layer_norm_epsilon": 1e-4},
    "version 1.0, long distances": {
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    "version 1.1, head tied": VERSION_1_1,
}  # fmt: skip


def prove(check_family, tokens, theirs, **options):
    inputs = tokens(2, SOURCE, SMALL["vocab_size"])
    decoder_inputs = tokens(2, TARGET, SMALL["vocab_size"], seed=5)
    return check_family(
        theirs,
        their_run=lambda model: model(
            input_ids=inputs, attention_mask=SOURCE_MASK.long(), decoder_input_ids=decoder_inputs
        ).logits[TARGET_MASK],
        our_run=lambda model: model(inputs, decoder_inputs, OURS)[TARGET_MASK],
        **options,
    )


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_that_of_transformers(case, check_family, tokens):
    config = transformers.T5Config(**SMALL | CASES[case])
    proven = prove(check_family, tokens, transformers.T5ForConditionalGeneration(config))
    assert proven.ours.config.scale_decoder_outputs is not case.startswith("version 1.1")


def test_version_1_1_has_a_head_of_its_own(check_family, tokens):
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**SMALL, **VERSION_1_1))
    theirs.lm_head.weight = torch.nn.Parameter(theirs.lm_head.weight.detach().clone())
    proven = prove(check_family, tokens, theirs, beside=("tie_word_embeddings",))
    assert "head.weight" in dict(proven.ours.named_parameters())


def change(folder, values, weights):
    """Write what an older version of transformers would have: other keys, more tensors."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | weights(tensors), folder / "model.safetensors", {"format": "pt"})


def test_files_of_version_4_are_read(tmp_path):
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**SMALL))
    theirs.save_pretrained(tmp_path / "theirs")
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    change(tmp_path / "theirs", {"n_positions": 512, "decoder_start_token_id": 0}, lambda tensors: {
        "encoder.embed_tokens.weight": tensors["shared.weight"].clone(),
        "decoder.embed_tokens.weight": tensors["shared.weight"].clone(),
        "lm_head.weight": tensors["shared.weight"].clone(),
        unused: torch.zeros(8, 3)})  # fmt: skip
    mtron_ckpt.convert(tmp_path / "theirs", tmp_path / "ours", to="mtron")
    checkpoint = mtron_ckpt.open(tmp_path / "ours")
    assert checkpoint.config["model"]["tie_word_embeddings"]
    assert checkpoint.config["model"]["decoder_start_token_id"] == 0
    assert "param/head.weight" not in checkpoint.names()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"is_gated_act": True}, "is_gated_act: contradicts feed_forward_proj = 'relu'"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj: only 'relu', 'gated-gelu'"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder: only True"),
        ({"relative_attention_num_buckets": 30}, "relative_attention_num_buckets: must be a mult"),
    ],
)
def test_what_cannot_be_honoured_is_refused(values, message, tmp_path):
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**SMALL))
    theirs.save_pretrained(tmp_path / "theirs")
    change(tmp_path / "theirs", values, lambda tensors: {})
    with pytest.raises(ValueError, match=message):
        mtron_ckpt.convert(tmp_path / "theirs", tmp_path / "ours", to="mtron")
