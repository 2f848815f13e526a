import pytest

from mtron_ckpt.conversion.families import FAMILIES, family_of_hf, family_of_mtron

LLAMA = FAMILIES["llama"]

OURS = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rope_theta": 5000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_dropout": 0.0,
    "initializer_range": 0.01,
    "bos_token_id": None,
    "eos_token_id": 7,
    "pad_token_id": None,
}


def theirs(**changes):
    return LLAMA.to_hf(OURS) | changes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_dropout": 0.25},
        {"tie_word_embeddings": False, "bos_token_id": 1, "pad_token_id": 0},
        {"head_dim": 16},
        {"attention_bias": True},
        {"mlp_bias": True},
    ],
)
def test_our_config_survives_the_round_trip(changes):
    notes = []
    assert LLAMA.from_hf(LLAMA.to_hf(OURS | changes), notes) == OURS | changes
    assert notes == []


def test_transformers_understands_every_field():
    config = pytest.importorskip("transformers").LlamaConfig(**theirs())
    for name in set(OURS) - {"rope_theta", "rope_scaling", "hidden_dropout"}:
        assert getattr(config, name) == OURS[name], name
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 5000.0}


def test_what_transformers_writes_is_understood():
    config = pytest.importorskip("transformers").LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_attention_heads=4, rope_theta=2e4
    )
    notes = []
    model = LLAMA.from_hf(config.to_dict() | {"architectures": ["LlamaForCausalLM"]}, notes)
    assert model["rope_theta"] == 2e4
    assert model["num_key_value_heads"] == 4
    assert model["hidden_dropout"] == 0.0
    assert set(model) == set(OURS)
    assert all(note.endswith("has no effect") for note in notes)


def test_both_forms_of_the_rotary_base_are_read():
    old = {k: v for k, v in theirs().items() if k != "rope_parameters"}
    new = {k: v for k, v in theirs().items() if k != "rope_theta"}
    for config in (old, new, old | {"rope_scaling": None}):
        assert LLAMA.from_hf(config, [])["rope_theta"] == 5000.0
    neither = {k: v for k, v in new.items() if k != "rope_parameters"}
    assert LLAMA.from_hf(neither, [])["rope_theta"] == 10000.0


def test_several_end_tokens_are_told():
    notes = []
    assert LLAMA.from_hf(theirs(eos_token_id=[9, 11], pad_token_id=-1), notes)["eos_token_id"] == 9
    assert notes == [
        "config.json: eos_token_id [9, 11]: the model config keeps 9",
        "config.json: pad_token_id -1: the model config keeps None",
    ]


def test_fields_without_effect_are_told():
    notes = []
    LLAMA.from_hf(theirs(sliding_window=4096), notes)
    assert notes == ["config.json: sliding_window has no effect"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_scaling", {"rope_type": "longrope", "factor": 8.0}),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 5000.0, "beta_fast": 2.0}),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 5000.0}),
        ("rope_parameters", [1]),
        ("rope_parameters", {"rope_theta": 5000.0, "partial_rotary_factor": 0.5}),
        ("rope_theta", 9.0),
        ("rope_theta", "5000"),
        ("attention_bias", 1),
        ("mlp_bias", "no"),
        ("hidden_act", "gelu"),
        ("attention_dropout", 0.1),
        ("quantization_config", {"bits": 4}),
        ("auto_map", {"AutoModel": "evil.Model"}),
        ("vocab_size", "300"),
        ("vocab_size", None),
        ("hidden_size", 0),
        ("num_hidden_layers", True),
        ("num_key_value_heads", 3),
        ("head_dim", 7),
        ("max_position_embeddings", 1.5),
        ("rms_norm_eps", "small"),
        ("tie_word_embeddings", "yes"),
        ("eos_token_id", "</s>"),
        ("mtron", {"unknown": 1}),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        LLAMA.from_hf(theirs(**{field: value}), [])


def test_what_their_format_cannot_say_is_refused_by_name():
    with pytest.raises(ValueError, match=r"model\.new_field: not known"):
        LLAMA.to_hf(OURS | {"new_field": 1})
    with pytest.raises(ValueError, match=r"model\.rms_norm_eps: missing"):
        LLAMA.to_hf({k: v for k, v in OURS.items() if k != "rms_norm_eps"})
    with pytest.raises(ValueError, match=r"model\.num_attention_heads: transformers loads only"):
        LLAMA.to_hf(OURS | {"num_attention_heads": 3, "num_key_value_heads": 3})


def test_unknown_families_are_refused():
    with pytest.raises(ValueError, match=r"unknown architecture, got 'mamba' \(MambaForCausalLM\)"):
        family_of_hf("config.json", {"model_type": "mamba", "architectures": ["MambaForCausalLM"]})
    with pytest.raises(ValueError, match="LlamaForSequenceClassification"):
        family_of_hf(
            "config.json",
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
        )
    with pytest.raises(ValueError, match="no name table for this family, got 'mamba'"):
        family_of_mtron("step", {"model_type": "mamba"})
