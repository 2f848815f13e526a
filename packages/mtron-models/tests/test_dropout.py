import math
from itertools import product

import pytest
import torch

from mtron_models import Context, RandomKey, fold_in, key_of, philox
from mtron_models.layers.dropout import Dropout

P = 0.3


def mask(*, ids=(7, 3, 5), seq=11, hidden=18, seed=1, step=4, site="embed", index=None, p=P):
    context = Context(random=RandomKey(seed, step, torch.tensor(ids), index))
    return Dropout(p, site)(torch.ones(len(ids), seq, hidden), context)


def test_rate_and_scale():
    drawn = mask(ids=tuple(range(8)), seq=64, hidden=256)
    assert set(drawn.unique().tolist()) == {0.0, torch.tensor(1 / (1 - P)).item()}
    rate = (drawn == 0).double().mean().item()
    assert abs(rate - P) < 4.5 * math.sqrt(P * (1 - P) / drawn.numel())


def test_mask_is_that_of_the_definition():
    drawn = mask(hidden=18)
    for row, token, column in product(range(3), (0, 3, 10), range(18)):
        key = fold_in(fold_in(key_of("dropout/embed"), 1), 4, (7, 3, 5)[row])
        word = philox((column // 4, token, 0, 0), key)[column % 4]
        assert (drawn[row, token, column] == 0).item() == (word < round(P * 2**32))


def test_mask_follows_the_sample_not_its_row():
    whole = mask()
    assert torch.equal(mask(ids=(5, 7)), whole[[2, 0]])
    parts = [mask(ids=(sample,)) for sample in (7, 3, 5)]
    assert torch.equal(torch.cat(parts), whole)


def test_mask_follows_the_token_not_its_column():
    whole = mask()
    early = mask(seq=4, index=torch.arange(4))
    late = mask(seq=7, index=torch.arange(4, 11))
    assert torch.equal(torch.cat((early, late), dim=1), whole)
    zigzag = torch.tensor([0, 1, 9, 10])
    per_row = zigzag.expand(3, 4)
    assert torch.equal(mask(seq=4, index=zigzag), whole[:, zigzag])
    assert torch.equal(mask(seq=4, index=per_row), whole[:, zigzag])


def test_a_longer_sample_starts_with_the_same_mask():
    assert torch.equal(mask(seq=20)[:, :11], mask())


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"step": 5}, {"step": 4 + 2**32}, {"site": "layers.0.mlp"}]
)
def test_mask_depends_on(change):
    same = (mask(hidden=256) == mask(hidden=256, **change)).double().mean().item()
    assert same == pytest.approx(P * P + (1 - P) ** 2, abs=0.03)


def test_samples_and_tokens_are_independent():
    drawn = (mask(ids=(1, 2), hidden=4096) == 0).double()
    for a, b in ((drawn[0], drawn[1]), (drawn[0, 0], drawn[0, 1])):
        assert (a * b).mean().item() == pytest.approx(P * P, abs=0.03)


def test_gradient_is_masked_alike():
    x = torch.randn(3, 11, 18, requires_grad=True)
    context = Context(random=RandomKey(1, 4, torch.tensor([7, 3, 5])))
    Dropout(P, "embed")(x, context).sum().backward()
    assert torch.equal(x.grad, mask())


def test_evaluation_and_probability_zero_do_nothing():
    x = torch.randn(2, 3, 4)
    assert Dropout(P, "embed").eval()(x, Context()) is x
    assert Dropout(0.0, "embed")(x, Context()) is x


def test_training_without_a_key_is_refused():
    with pytest.raises(ValueError, match=r"context\.random: needed .* give RandomKey"):
        Dropout(P, "embed")(torch.ones(1, 2, 4), Context())


def test_sites_of_a_model_are_named_and_differ(make_model):
    model = make_model(hidden_dropout=P)
    sites = [module.site for module in model.modules() if isinstance(module, Dropout)]
    names = [f"layers.{i}.{part}" for i in range(3) for part in ("self_attn", "mlp")]
    assert sorted(sites) == sorted(key_of(f"dropout/{name}") for name in ["embed", *names])


def test_step_may_be_a_tensor():
    assert torch.equal(mask(step=torch.tensor(4)), mask(step=4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype):
    context = Context(random=RandomKey(1, 4, torch.tensor([7, 3, 5])))
    dropped = Dropout(P, "embed")(torch.ones(3, 11, 18, dtype=dtype), context)
    assert dropped.dtype == dtype
    assert torch.equal(dropped == 0, mask() == 0)


def test_model_does_not_depend_on_the_split_of_the_batch(make_model, tokens):
    model = make_model(torch.float64, hidden_dropout=0.2)
    inputs, labels = tokens(4, 9)
    ids = torch.tensor([12, 5, 7, 2**40])

    def loss(rows):
        context = Context(random=RandomKey(0, 3, ids[rows]))
        weights = torch.full(inputs[rows].shape, 1 / inputs.numel(), dtype=torch.float64)
        return model.train_loss(inputs[rows], labels[rows], weights, context)

    whole = loss(slice(None))
    parts = loss([3, 0]) + loss([1]) + loss([2])
    assert parts.item() == pytest.approx(whole.item(), rel=1e-13)
    assert model.eval()(inputs).isfinite().all()
    assert model.train_loss(inputs, labels, torch.ones(4, 9) / 36).item() != whole.item()
