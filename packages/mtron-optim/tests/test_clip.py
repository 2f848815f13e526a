import pytest
import torch

from mtron_optim import clip_, shards_of


@pytest.fixture
def model(make_model, make_batch):
    model = make_model()
    model.train_loss(*make_batch()).backward()
    return model


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def global_norm(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()]).norm()


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e6])
def test_equal_to_torch(max_norm, model, make_model, make_batch):
    other = make_model()
    other.train_loss(*make_batch()).backward()
    norm = torch.nn.utils.clip_grad_norm_(other.parameters(), max_norm)
    clip_(shards_of(model), norm, max_norm)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_result_has_the_norm(model):
    clip_(shards_of(model), float(global_norm(model)), 0.125)
    assert global_norm(model).item() == pytest.approx(0.125, rel=1e-4)


def test_the_given_norm_counts_not_the_local_one(model):
    before = gradients(model)
    clip_(shards_of(model), 8.0, 2.0)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, before[name] / 4)


def test_small_gradients_and_no_limit_leave_every_bit(model):
    before = gradients(model)
    norm = global_norm(model)
    clip_(shards_of(model), norm, None)
    clip_(shards_of(model), norm, float(norm) * 1.01)
    assert all(torch.equal(before[name], g) for name, g in gradients(model).items())


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_is_an_error_that_names_it(bad, model):
    model.layers[1]["up"].weight.grad[3, 4] = bad
    model.head.weight.grad[0, 0] = bad
    before = gradients(model)
    for max_norm in (1.0, None):
        with pytest.raises(FloatingPointError, match=r"layers\.1\.up\.weight and 1 more"):
            clip_(shards_of(model), global_norm(model), max_norm)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, before[name], equal_nan=True, rtol=0, atol=0)


def test_a_norm_that_is_not_finite_elsewhere(model):
    with pytest.raises(FloatingPointError, match="each gradient here is finite"):
        clip_(shards_of(model), float("inf"), 1.0)
