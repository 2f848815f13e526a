from fnmatch import fnmatchcase

import pytest
import torch

from mtron_models import Replicate, Shard, build
from mtron_models.layout import colwise, expert, rowwise, sequence, vocab


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


def mamba_layout(heads, head_dim, groups, states):
    """The table of a Mamba-2 layer (Dao and Gu, arXiv:2405.21060, section 7), on paper.

    `in_proj` makes [z, x, B, C, dt]: z and x have `head_dim` rows of each head, B and C `states`
    of each group of heads, dt one of each head. Several ranks may hold the same group. `conv1d`
    runs over [x, B, C]; `norm` divides by a mean square over all heads, to which ranks add up.
    """
    inner, shared = heads * head_dim, groups * states
    by_head, by_group = "num_heads", "n_groups"
    per_head = colwise(of=by_head)
    return {
        "layers.*.norm.weight": sequence(),
        "layers.*.mixer.in_proj.weight": colwise(
            (head_dim, head_dim, states, states, 1),
            segments=(inner, inner, shared, shared, heads),
            replicate_if_fewer=True,
            of=(by_head, by_head, by_group, by_group, by_head),
        ),
        "layers.*.mixer.conv1d.*": colwise(
            (head_dim, states, states),
            segments=(inner, shared, shared),
            replicate_if_fewer=True,
            of=(by_head, by_group, by_group),
        ),
        "layers.*.mixer.dt_bias": per_head,
        "layers.*.mixer.A_log": per_head,
        "layers.*.mixer.D": per_head,
        "layers.*.mixer.norm.weight": colwise(head_dim, of=by_head),
        "layers.*.mixer.out_proj.weight": rowwise(head_dim, of=by_head),
    }


def test_the_mixed_projection_of_mamba_is_expressible():
    from transformers import Mamba2Config, Mamba2Model

    config = Mamba2Config(
        hidden_size=12, num_heads=4, head_dim=6, n_groups=2, state_size=5, num_hidden_layers=1
    )
    with torch.device("meta"):
        layers = Mamba2Model(config).layers
    table = mamba_layout(4, 6, 2, 5)
    shapes = {f"layers.{name}": p.shape for name, p in layers.named_parameters()}
    assert shapes
    for name, shape in shapes.items():
        rule = next(rule for pattern, rule in table.items() if fnmatchcase(name, pattern))
        if isinstance(rule, Shard):
            segments = rule.segments or (shape[rule.dim],)
            units = rule.unit if isinstance(rule.unit, tuple) else (rule.unit,)
            fields = rule.of if isinstance(rule.of, tuple) else (rule.of,)
            counted = [getattr(config, field) for field in fields]
            assert sum(segments) == shape[rule.dim], name
            assert [n * unit for n, unit in zip(counted, units, strict=True)] == list(segments)


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
        ({"dim": 0, "segments": (8, 6), "unit": (4, 4)}, "segments: every size .* 4, got 6"),
        ({"dim": 0, "segments": (8, 6), "unit": (4, 0)}, "unit: must be at least 1 in every"),
        ({"dim": 0, "unit": (4, 4)}, "unit: must be one value, or one for each of the 0 seg"),
        ({"dim": 0, "segments": (8,), "of": ("a", "b")}, "of: must be one .* 1 segments, got"),
    ],
)
def test_impossible_rules_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Shard(**fields)
