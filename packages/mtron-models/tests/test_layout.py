from fnmatch import fnmatchcase

import pytest

from mtron_models import Replicate, Shard, build
from mtron_models.layout import colwise, expert, rowwise, sequence, vocab


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_exactly_one_rule(make_config, tied):
    model = build(make_config(tie_word_embeddings=tied))
    table = model.layout()
    for name, _ in model.named_parameters():
        assert sum(fnmatchcase(name, pattern) for pattern in table) == 1, name


def test_rules_say_how_the_model_may_be_cut(make_config):
    model = build(make_config())
    table = model.layout()

    def rule(name):
        return next(rule for pattern, rule in table.items() if fnmatchcase(name, pattern))

    layer = "layers.1."
    heads, kv_heads = "num_attention_heads", "num_key_value_heads"
    key_value = Shard(0, unit=8, replicate_if_fewer=True, of=kv_heads)
    gate_up = Shard(0, of="intermediate_size")
    assert rule("embed.weight") == rule("head.weight") == Shard(0, pad=True, of="vocab_size")
    assert rule(layer + "self_attn.q_proj.weight") == Shard(0, unit=8, of=heads)
    assert rule(layer + "self_attn.k_proj.weight") == key_value
    assert rule(layer + "self_attn.v_proj.weight") == key_value
    assert rule(layer + "self_attn.o_proj.weight") == Shard(1, unit=8, of=heads)
    assert rule(layer + "mlp.gate_proj.weight") == rule(layer + "mlp.up_proj.weight") == gate_up
    assert rule(layer + "mlp.down_proj.weight") == Shard(1, of="intermediate_size")
    for norm in (layer + "input_layernorm", layer + "post_attention_layernorm", "norm"):
        assert rule(norm + ".weight") == Replicate(sequence=True)


@pytest.mark.parametrize("head_dim", [8, 10])
def test_units_are_what_the_named_field_counts(make_config, head_dim):
    config = make_config(head_dim=head_dim)
    table = config.layout()
    for name, shape in config.parameter_shapes().items():
        rule = next(rule for pattern, rule in table.items() if fnmatchcase(name, pattern))
        if isinstance(rule, Shard):
            assert shape[rule.dim] == rule.unit * getattr(config, rule.of), name


def test_the_model_has_the_table_of_its_configuration(make_config):
    config = make_config()
    assert build(config).layout() == config.layout()


def test_shorthands():
    assert colwise() == Shard(0)
    assert colwise(4, segments=(8, 16)) == Shard(0, segments=(8, 16), unit=4)
    assert rowwise(4) == Shard(1, unit=4)
    assert vocab() == Shard(0, pad=True)
    assert expert() == Shard(0, axis="ep")
    assert sequence() == Replicate(sequence=True) != Replicate()


def test_shorthands_pass_on_what_the_units_are():
    for shorthand in (colwise, rowwise, vocab, expert):
        assert shorthand().of == ""
        assert shorthand(of="num_units").of == "num_units"


def test_rules_are_frozen_values():
    assert len({Shard(0), Shard(0), Shard(1), Replicate(), Replicate(sequence=True)}) == 4
    with pytest.raises(AttributeError):
        Shard(0).dim = 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": -1}, "dim: count dims from the first, got -1"),
        ({"dim": 0, "unit": 0}, "unit: must be at least 1, got 0"),
        ({"dim": 0, "unit": 4, "segments": (8, 6)}, "segments: every size .* unit = 4, got 6"),
        ({"dim": 0, "segments": (8, 0)}, "segments: every size .* got 0"),
    ],
)
def test_impossible_rules_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Shard(**fields)
