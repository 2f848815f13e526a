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
    assert rule("embed.weight") == rule("head.weight") == Shard(0, pad=True)
    assert rule(layer + "self_attn.q_proj.weight") == Shard(0, unit=8)
    assert rule(layer + "self_attn.k_proj.weight") == Shard(0, unit=8, replicate_if_fewer=True)
    assert rule(layer + "self_attn.v_proj.weight") == Shard(0, unit=8, replicate_if_fewer=True)
    assert rule(layer + "self_attn.o_proj.weight") == Shard(1, unit=8)
    assert rule(layer + "mlp.gate_proj.weight") == rule(layer + "mlp.up_proj.weight") == Shard(0)
    assert rule(layer + "mlp.down_proj.weight") == Shard(1)
    for norm in (layer + "input_layernorm", layer + "post_attention_layernorm", "norm"):
        assert rule(norm + ".weight") == Replicate(sequence=True)


def test_cuts_fit_the_shapes(make_config):
    config = make_config()
    table = build(config).layout()
    for name, shape in config.parameter_shapes().items():
        rule = next(rule for pattern, rule in table.items() if fnmatchcase(name, pattern))
        if isinstance(rule, Shard):
            assert shape[rule.dim] % rule.unit == 0, name


def test_shorthands():
    assert colwise() == Shard(0)
    assert colwise(4, segments=(8, 16)) == Shard(0, segments=(8, 16), unit=4)
    assert rowwise(4) == Shard(1, unit=4)
    assert vocab() == Shard(0, pad=True)
    assert expert() == Shard(0, axis="ep")
    assert sequence() == Replicate(sequence=True) != Replicate()


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
