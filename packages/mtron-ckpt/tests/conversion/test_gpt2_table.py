import pytest

from mtron_ckpt.conversion.families import FAMILIES

GPT2 = FAMILIES["gpt2"]
PUBLISHED = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}


def test_the_published_config_is_the_default_and_loses_nothing():
    notes = []
    model = GPT2.from_hf(PUBLISHED, notes)
    assert notes == []
    assert model == GPT2.from_hf({"model_type": "gpt2"}, notes)
    assert GPT2.from_hf(GPT2.to_hf(model), notes) == model
    assert notes == []


def test_a_vocabulary_without_the_default_token_has_none():
    notes = []
    model = GPT2.from_hf({"model_type": "gpt2", "vocab_size": 100}, notes)
    assert model["eos_token_id"] is None
    assert notes == [
        f"config.json: {name} 50256: the model config keeps None"
        for name in ("bos_token_id", "eos_token_id")
    ]


def test_every_tensor_has_its_place():
    model = GPT2.from_hf(PUBLISHED | {"n_layer": 2, "n_embd": 24, "n_inner": 10}, [])
    tensors = GPT2.tensors(model, 100)
    assert tensors.theirs["transformer.h.1.attn.c_attn.weight"] == (24, 72)
    assert tensors.theirs["transformer.h.1.attn.c_attn.bias"] == (72,)
    assert tensors.theirs["transformer.h.0.mlp.c_fc.weight"] == (24, 10)
    assert tensors.ours["layers.0.mlp.up_proj.weight"] == (10, 24)
    assert tensors.ours["embed.positions.weight"] == (1024, 24)
    assert "head.weight" not in tensors.ours
    assert GPT2.copies(model) == {"lm_head.weight": "transformer.wte.weight"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add_cross_attention": True}, "add_cross_attention: only False can be honoured, got Tru"),
        ({"activation_function": "relu"}, "activation_function: only 'gelu_new', 'gelu_pytorch_t"),
        ({"n_embd": 100}, "n_embd: must be a multiple of n_head = 12, got 100"),
        ({"n_inner": 0}, "n_inner: must be a positive integer, got 0"),
        ({"attn_pdrop": 1.0}, "attn_pdrop: must be at least 0 and less than 1, got 1.0"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quantized weights cannot"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes, message):
    with pytest.raises(ValueError) as caught:
        GPT2.from_hf(PUBLISHED | changes, [])
    assert str(caught.value).startswith(message)


def test_more_layers_than_tensors_are_refused():
    with pytest.raises(ValueError, match="n_layer: there are only 5 tensors, got 12 layers"):
        GPT2.tensors(GPT2.from_hf(PUBLISHED, []), 5)
