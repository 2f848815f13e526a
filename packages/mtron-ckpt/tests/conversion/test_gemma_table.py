import pytest

from mtron_ckpt.conversion.families import FAMILIES

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "hidden_activation": "gelu_pytorch_tanh",
}
OLD = {
    "rope_theta": 1000000,
    "rope_local_base_freq": 10000,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "cache_implementation": "hybrid",
}
NEW = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "_sliding_window_pattern": 6,
    "use_bidirectional_attention": False,
}
FULL = "full_attention"


def test_gemma_3_is_read_in_both_spellings():
    family, notes = FAMILIES["gemma3_text"], []
    old, new = (family.from_hf(SIZES | say, notes) for say in (OLD, NEW))
    assert old == new
    assert old["rope_scaling"]["factor"] == 8.0
    assert old["head_dim"] == 256
    assert family.from_hf(family.to_hf(old), notes) == old
    assert notes == []


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gemma2", {}),
        ("gemma2", {"hidden_dropout": 0.25, "attn_logit_softcapping": None}),
        ("gemma2", {"layer_types": [FULL] * 3, "sliding_window": None, "attention_bias": True}),
        ("gemma3_text", {"sliding_window_pattern": 3, "final_logit_softcapping": 5.0}),
        ("gemma3_text", {"sliding_window_pattern": 1, "sliding_window": None}),
    ],
)
def test_our_config_survives_the_round_trip(model_type, changes):
    family, notes = FAMILIES[model_type], []
    model = family.from_hf(SIZES, notes) | changes
    assert family.from_hf(family.to_hf(model), notes) == model
    assert notes == []


def test_only_gemma_3_normalizes_heads():
    for model_type, has_norms in (("gemma2", False), ("gemma3_text", True)):
        family = FAMILIES[model_type]
        tensors = family.tensors(family.from_hf(SIZES, []), 100)
        assert ("model.layers.0.self_attn.q_norm.weight" in tensors.theirs) == has_norms
        assert tensors.ours["layers.2.post_feedforward_layernorm.weight"] == (32,)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("gemma2", {"use_bidirectional_attention": True},
         "use_bidirectional_attention: attention in both directions cannot be converted, got True"),
        ("gemma2", {"hidden_activation": "silu"},
         "hidden_activation: only 'gelu_pytorch_tanh' can be honoured, got 'silu'"),
        ("gemma2", {"sliding_window": None}, "sliding_window: needed in layers with a window"),
        ("gemma3_text", {"sliding_window": None}, "sliding_window: needed in layers with a window"),
        ("gemma2", {"layer_types": [FULL]}, "layer_types: must have one entry for each of num_hi"),
        ("gemma2", {"layer_types": ["linear"] * 3}, "layer_types.0: only 'full_attention', 'slid"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0},
         "attn_logit_softcapping: only None can be honoured, got 50.0"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default"}},
         "rope_parameters: must hold a table for full_attention and one for sliding_attention"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(model_type, changes, message):
    with pytest.raises(ValueError) as caught:
        FAMILIES[model_type].from_hf(SIZES | changes, [])
    assert str(caught.value).startswith(message)
