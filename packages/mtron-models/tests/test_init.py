import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mtron_models import (
    Constant,
    Normal,
    build,
    fold_in,
    initial_block,
    initial_values,
    initialize,
    key_of,
    normal,
    philox,
)
from mtron_models import init as init_module

HALF = Normal(0.5)


def whole(name="w", shape=(37, 22), seed=3, dtype=torch.float64, rule=HALF):
    return initial_block(name, rule, seed, (0,) * len(shape), shape, shape, dtype)


@st.composite
def blocks(draw):
    shape = draw(st.lists(st.integers(1, 13), min_size=1, max_size=4))
    offset = [draw(st.integers(0, size - 1)) for size in shape]
    extent = [draw(st.integers(0, size - at)) for size, at in zip(shape, offset, strict=True)]
    return tuple(shape), tuple(offset), tuple(extent)


@settings(max_examples=200, deadline=None)
@given(blocks())
def test_any_block_is_that_part_of_the_whole(block):
    shape, offset, extent = block
    part = initial_block("w", HALF, 3, offset, extent, shape, torch.float64)
    where = tuple(slice(at, at + size) for at, size in zip(offset, extent, strict=True))
    assert torch.equal(part, whole(shape=shape)[where])


@pytest.mark.parametrize("chunk", [1, 64, 1000, 2**30])
def test_values_do_not_depend_on_how_much_is_drawn_at_once(chunk, monkeypatch):
    expected = whole()
    monkeypatch.setattr(init_module, "_CHUNK", chunk)
    assert torch.equal(whole(), expected)


def test_values_are_those_of_the_definition():
    values = whole("layers.0.w", (5, 10), seed=2**40 + 1)
    key = fold_in(key_of("init/layers.0.w"), 2**40 + 1)
    for row, column in ((0, 0), (0, 1), (3, 6), (4, 9)):
        drawn = philox((column // 4, row, 0, 0), key)
        first, second = drawn[:2] if column % 4 < 2 else drawn[2:]
        radius = math.sqrt(-2 * math.log((first + 1) / 2**32))
        turn = math.cos if column % 2 == 0 else math.sin
        expected = 0.5 * radius * turn(2 * math.pi * second / 2**32)
        assert values[row, column].item() == pytest.approx(expected, rel=1e-12)


def test_parameters_may_have_more_than_2_to_the_32_rows():
    row = 2**33 + 5
    values = initial_block("w", HALF, 3, (row, 0), (1, 2), (2**34, 2), torch.float64)
    key = fold_in(key_of("init/w"), 3)
    assert torch.equal(values[0], 0.5 * normal(key, (0, 5, 2))[:2])
    low = initial_block("w", HALF, 3, (5, 0), (1, 2), (2**34, 2), torch.float64)
    assert not torch.equal(values, low)


def test_other_names_and_seeds_give_other_values():
    assert not torch.equal(whole("a"), whole("b"))
    assert not torch.equal(whole(seed=1), whole(seed=2))
    assert torch.equal(whole("a", seed=1), whole("a", seed=1))


def test_lower_precision_is_the_rounded_value():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(whole(dtype=dtype), whole().to(dtype))


def test_constant_and_scalar_parameters():
    assert torch.equal(whole(rule=Constant(1.5)), torch.full((37, 22), 1.5, dtype=torch.float64))
    assert whole(shape=()).shape == ()


@pytest.mark.parametrize(
    ("offset", "shape"), [((0, 0), (5, 3)), ((3, 0), (2, 2)), ((-1, 0), (2, 2)), ((0,), (2,))]
)
def test_a_block_outside_the_parameter_is_refused(offset, shape):
    with pytest.raises(ValueError, match=r"w: a block at .* does not lie within .*\(4, 2\)"):
        initial_block("w", Normal(1.0), 0, offset, shape, (4, 2))


def test_model_follows_its_rules(make_config):
    config = make_config(hidden_size=96, intermediate_size=256, initializer_range=0.3)
    model = build(config, device="cpu")
    initialize(model, 5)
    branch = 0.3 / math.sqrt(2 * config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert bool((parameter == 1).all()), name
            continue
        std = branch if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.3
        assert parameter.std().item() == pytest.approx(std, rel=0.05), name
        assert abs(parameter.mean().item()) < 4.5 * std / math.sqrt(parameter.numel()), name


def test_blocks_of_a_model_need_only_the_meta_model(make_config):
    config = make_config()
    draw = initial_values(build(config), seed=8)
    model = build(config, device="cpu")
    initialize(model, seed=8)
    weight = model.get_parameter("layers.2.mlp.up_proj.weight")
    block = draw("layers.2.mlp.up_proj.weight", (10, 4), (7, 9))
    assert torch.equal(block, weight[10:17, 4:13])
    with pytest.raises(ValueError, match="nothing: is not a parameter"):
        draw("nothing", (0,), (1,))


def test_initialize_says_what_is_missing(make_config):
    with pytest.raises(ValueError, match=r"embed\.weight: is on the meta device.*to_empty"):
        initialize(build(make_config()), 0)
    with pytest.raises(ValueError, match="Linear has no init_rules"):
        initialize(nn.Linear(2, 2), 0)


def test_every_parameter_needs_a_rule():
    class Partial(nn.Linear):
        def init_rules(self):
            return {"weight": Normal(1.0)}

    with pytest.raises(ValueError, match="no pattern matches the parameter bias"):
        initialize(Partial(2, 2), 0)
