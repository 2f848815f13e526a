import pytest

from mtron_models import LlamaConfig, build, flops_per_token, num_parameters

PUBLISHED = {
    "TinyLlama 1.1B": (1_100_048_384, (32000, 2048, 5632, 22, 32, 4, False)),
    "Llama 2 7B": (6_738_415_616, (32000, 4096, 11008, 32, 32, 32, False)),
    "Llama 3.1 8B": (8_030_261_248, (128256, 4096, 14336, 32, 32, 8, False)),
    "Llama 3.2 1B": (1_235_814_400, (128256, 2048, 8192, 16, 32, 8, True)),
    "Llama 3.1 405B": (405_853_388_800, (128256, 16384, 53248, 126, 128, 8, False)),
}


def preset(vocab, hidden, intermediate, layers, heads, kv_heads, tied):
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    count, sizes = PUBLISHED[name]
    assert num_parameters(preset(*sizes)) == count


@pytest.mark.parametrize("name", ["TinyLlama 1.1B", "Llama 3.2 1B"])
def test_shapes_are_those_of_the_built_model(name):
    config = preset(*PUBLISHED[name][1])
    built = {name: tuple(p.shape) for name, p in build(config).named_parameters()}
    assert list(config.parameter_shapes().items()) == list(built.items())


def test_flops_grow_with_the_sequence_by_attention_only(make_config):
    config = make_config()
    per_token = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    assert flops_per_token(config, 100) - flops_per_token(config, 60) == 40 * per_token


def test_sequence_length_must_be_positive(make_config):
    with pytest.raises(ValueError, match="seq_len: must be at least 1, got 0"):
        flops_per_token(make_config(), 0)
