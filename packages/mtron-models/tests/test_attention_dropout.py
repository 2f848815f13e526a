"""Dropout of attention weights: its mask, and when the layer asks for it."""

import copy
import math
from functools import partial
from itertools import product

import pytest
import torch

from mtron_models import Context, RandomKey, fold_in, key_of, ops, philox
from mtron_models.attention_spec import AttentionSpec
from mtron_models.layers.attention import Attention

P = 0.3
SITE = key_of("dropout/here")


def mask(*, ids=(7, 3, 5), heads=6, queries=11, keys=11, seed=1, step=4, index=None, first_head=0):
    weights = torch.ones(len(ids), heads, queries, keys)
    random = RandomKey(seed, step, torch.tensor(ids), index)
    return ops.keyed_weight_dropout(weights, P, SITE, random, first_head)


def test_rate_and_scale():
    drawn = mask(ids=tuple(range(8)), queries=64, keys=64)
    assert set(drawn.unique().tolist()) == {0.0, torch.tensor(1 / (1 - P)).item()}
    rate = (drawn == 0).double().mean().item()
    assert abs(rate - P) < 4.5 * math.sqrt(P * (1 - P) / drawn.numel())


def test_mask_is_that_of_the_definition():
    drawn = mask(queries=5)
    for row, head, query, key in product(range(3), range(6), (0, 4), (0, 3, 10)):
        words_key = fold_in(fold_in(SITE, 1), 4, (7, 3, 5)[row])
        word = philox((key, query, head // 4, 0), words_key)[head % 4]
        assert (drawn[row, head, query, key] == 0).item() == (word < round(P * 2**32))


def test_mask_follows_the_sample_not_its_row():
    assert torch.equal(mask(ids=(5, 7)), mask()[[2, 0]])


@pytest.mark.parametrize("first", [0, 1, 3, 4, 5])
def test_mask_follows_the_head_of_the_layer(first):
    whole = mask(heads=8)
    assert torch.equal(mask(heads=3, first_head=first), whole[:, first : first + 3])


def test_mask_follows_the_token_not_its_column():
    whole = mask()
    places = torch.tensor([0, 1, 9, 10])
    expected = whole[:, :, places][..., places]
    assert torch.equal(mask(queries=4, keys=4, index=places), expected)
    assert torch.equal(mask(queries=4, keys=4, index=places.expand(3, 4)), expected)
    assert torch.equal(mask(queries=4), whole[:, :, :4])


@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 5}, {"ids": (8, 4, 6)}])
def test_mask_depends_on(change):
    same = (mask(queries=40, keys=40) == mask(queries=40, keys=40, **change)).double().mean().item()
    assert same == pytest.approx(P * P + (1 - P) ** 2, abs=0.03)


def test_heads_queries_and_keys_are_independent():
    drawn = (mask(ids=(1,), heads=8, queries=64, keys=64) == 0).double()[0]
    for a, b in ((drawn[0], drawn[1]), (drawn[0], drawn[4]), (drawn[1], drawn[1].T)):
        assert (a * b).mean().item() == pytest.approx(P * P, abs=0.03)
    assert (drawn[:, 0] * drawn[:, 1]).mean().item() == pytest.approx(P * P, abs=0.05)


def test_a_divided_sequence_is_refused():
    with pytest.raises(ValueError, match=r"token_index: .* 11 queries and 11 keys .* of 6 tokens"):
        mask(index=torch.arange(6))
    with pytest.raises(ValueError, match=r"token_index: .* 11 queries and 4 keys"):
        mask(index=torch.arange(11), keys=4)


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"softcap": 2.0}, {"causal": False}])
def test_attention_drops_weights_after_the_softmax(options):
    generator = torch.Generator().manual_seed(3)
    q, k, v = (
        torch.randn(2, heads, 9, 4, generator=generator, dtype=torch.float64) for heads in (6, 2, 2)
    )
    spec = AttentionSpec(dropout=P, **options)
    random = RandomKey(1, 4, torch.tensor([7, 3]))
    attended = ops.attention(q, k, v, Context(random=random), spec=spec, site=SITE)

    plain = AttentionSpec(**options)
    one_hot = torch.eye(9, dtype=torch.float64).expand(2, 2, 9, 9)
    weights = ops.attention(q, k, one_hot, Context(), spec=plain)
    expected = (weights * mask(ids=(7, 3), queries=9, keys=9)) @ v.repeat_interleave(3, dim=1)
    torch.testing.assert_close(attended, expected, rtol=0, atol=1e-6)
    without = ops.attention(q, k, v, Context(), spec=spec)
    assert torch.equal(without, ops.attention(q, k, v, Context(), spec=plain))


def make_attention(dropout=P):
    generator = torch.Generator().manual_seed(0)
    spec = AttentionSpec(dropout=dropout)
    attention = Attention(24, 6, 2, 4, spec=spec, bias=True, output_bias=False, site="here")
    attention = attention.double()
    for parameter in attention.parameters():
        parameter.data.normal_(generator=generator)
    return attention, torch.randn(3, 7, 24, generator=generator, dtype=torch.float64)


RANDOM = Context(random=RandomKey(1, 4, torch.tensor([7, 3, 5])))


def test_the_layer_drops_while_training_only():
    attention, x = make_attention()
    plain, _ = make_attention(dropout=0.0)
    assert (attention(x, None, RANDOM) - plain(x, None, RANDOM)).abs().max() > 0.01
    attention.eval()
    assert torch.equal(attention(x, None, RANDOM), plain(x, None, Context()))
    assert torch.equal(attention(x, None, Context()), plain(x, None, Context()))


def test_training_without_a_key_is_refused():
    attention, x = make_attention()
    with pytest.raises(ValueError, match=r"context\.random: needed .* give RandomKey"):
        attention(x, None, Context())


def test_a_layer_with_dropout_has_a_site():
    with pytest.raises(ValueError, match=r"site: needed with spec\.dropout = 0\.3"):
        Attention(24, 6, 2, 4, spec=AttentionSpec(dropout=P))
    q = torch.ones(3, 2, 4, 4)
    with pytest.raises(ValueError, match=r"site: needed"):
        ops.attention(q, q, q, RANDOM, spec=AttentionSpec(dropout=P))


def test_a_layer_cut_to_its_heads_is_told_which_they_are():
    attention, x = make_attention()
    parts = []
    for half in (0, 1):
        cut = copy.deepcopy(attention)
        for name in ("q_proj", "k_proj", "v_proj"):
            linear = getattr(cut, name)
            linear.weight = torch.nn.Parameter(linear.weight.chunk(2, dim=0)[half])
            linear.bias = torch.nn.Parameter(linear.bias.chunk(2, dim=0)[half])
        cut.o_proj.weight = torch.nn.Parameter(cut.o_proj.weight.chunk(2, dim=1)[half])
        cut.core = partial(cut.core, first_head=3 * half)
        parts.append(cut(x, None, RANDOM))
    torch.testing.assert_close(sum(parts), attention(x, None, RANDOM), rtol=0, atol=1e-12)
