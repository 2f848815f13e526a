import json

import pytest
from pydantic import ValidationError

from mtron_models import LlamaConfig, ModelConfig, config_from_dict

GOOD = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
}


def errors_of(**changes):
    values = {k: v for k, v in {**GOOD, **changes}.items() if v is not ...}
    with pytest.raises(ValueError) as caught:
        config_from_dict(values)
    assert "Traceback" not in str(caught.value)
    return str(caught.value).splitlines()


def test_defaults_are_derived():
    config = config_from_dict(GOOD)
    assert isinstance(config, LlamaConfig)
    assert config.num_key_value_heads == 6
    assert config.head_dim == 8
    assert config.tie_word_embeddings is False
    assert config.eos_token_id is None


def test_round_trip_through_json():
    config = config_from_dict({**GOOD, "num_key_value_heads": 3, "eos_token_id": 99})
    assert config_from_dict(json.loads(json.dumps(config.model_dump()))) == config


def test_head_dim_need_not_divide_hidden_size():
    assert config_from_dict({**GOOD, "hidden_size": 50, "head_dim": 4}).head_dim == 4


def test_ints_are_accepted_for_floats():
    assert config_from_dict({**GOOD, "rope_theta": 500000}).rope_theta == 500000


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hiden_size": 4}, "hiden_size: unknown field, got 4; did you mean hidden_size?"),
        ({"zzz": 4}, "zzz: unknown field, got 4; known are model_type, vocab_size"),
        ({"vocab_size": ...}, "vocab_size: missing; this field has no default"),
        ({"num_attention_heads": ...}, "num_attention_heads: missing; this field has no default"),
        ({"hidden_size": "48"}, "hidden_size: input should be a valid integer, got '48'"),
        ({"hidden_size": True}, "hidden_size: input should be a valid integer, got True"),
        ({"hidden_size": 48.0}, "hidden_size: input should be a valid integer, got 48.0"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: input should be a valid boolean, got 1"),
        ({"hidden_dropout": 1}, "hidden_dropout: input should be less than 1, got 1"),
        ({"hidden_dropout": -0.1}, "hidden_dropout: input should be greater than or equal to 0"),
        ({"rms_norm_eps": 0}, "rms_norm_eps: input should be greater than 0, got 0"),
        ({"rope_theta": float("inf")}, "rope_theta: input should be a finite number, got inf"),
        ({"initializer_range": float("nan")}, "initializer_range: input should be"),
        ({"head_dim": 7}, "head_dim: must be even for rotary positions, got 7; use 8"),
        ({"head_dim": 0}, "head_dim: input should be greater than or equal to 2, got 0"),
        (
            {"hidden_size": 50},
            "hidden_size: does not give each of num_attention_heads = 6 heads an even width, "
            "got 50; use 60 or give head_dim",
        ),
        (
            {"num_key_value_heads": 4},
            "num_key_value_heads: does not divide num_attention_heads = 6, got 4; "
            "use one of 1, 2, 3, 6",
        ),
        (
            {"pad_token_id": 100},
            "pad_token_id: is not a token of the vocabulary, got 100; "
            "use at most vocab_size - 1 = 99",
        ),
        ({"bos_token_id": -1}, "bos_token_id: input should be greater than or equal to 0, got -1"),
        ({"model_type": "lama"}, "model_type: unknown model family, got 'lama'; did you mean"),
        ({"model_type": "rnn?"}, "model_type: unknown model family, got 'rnn?'; known are "),
        ({"model_type": 3}, "model_type: unknown model family, got 3; known are "),
        ({"model_type": ...}, "model_type: missing; name the model family"),
    ],
)
def test_error_names_field_value_and_remedy(changes, expected):
    lines = errors_of(**changes)
    assert len(lines) == 1
    assert lines[0].startswith(expected)


@pytest.mark.parametrize(
    "field",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
    ],
)
def test_sizes_are_positive(field):
    assert errors_of(**{field: 0}) == [
        f"{field}: input should be greater than or equal to 1, got 0"
    ]


def test_all_errors_at_once():
    lines = errors_of(vocab_size=0, hiden_size=3, num_attention_heads="x")
    assert [line.split(":")[0] for line in lines] == [
        "vocab_size",
        "num_attention_heads",
        "hiden_size",
    ]
    lines = errors_of(num_key_value_heads=4, head_dim=3, eos_token_id=100, bos_token_id=200)
    assert len(lines) == 4


def test_frozen_and_documented():
    config = config_from_dict(GOOD)
    with pytest.raises(ValidationError, match="frozen"):
        config.hidden_size = 4
    schema = LlamaConfig.model_json_schema()
    assert all(field.get("description") for field in schema["properties"].values())
    assert "num_key_value_heads" not in schema["required"]


def test_base_cannot_be_used_alone():
    with pytest.raises(TypeError):
        ModelConfig(model_type="x")
