import pytest

from mtron_models import flops_per_token


def test_flops_grow_with_the_sequence_by_attention_only(make_config):
    config = make_config()
    per_token = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    assert flops_per_token(config, 100) - flops_per_token(config, 60) == 40 * per_token


def test_sequence_length_must_be_positive(make_config):
    with pytest.raises(ValueError, match="seq_len: must be at least 1, got 0"):
        flops_per_token(make_config(), 0)
