from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mtron_models.losses import NOT_PREDICTED, cross_entropy, masked_lm


def drawn(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 5, 40, dtype=torch.float64, generator=generator)
    labels = torch.randint(40, (2, 5), generator=generator)
    return logits.to(dtype).requires_grad_(), labels


def by_definition(logits, labels, smoothing, z_loss):
    log_softmax = logits.double().log_softmax(-1)
    target = (1 - smoothing) * F.one_hot(labels, 40).double() + smoothing / 40
    z = logits.double().logsumexp(-1)
    return -(target * log_softmax).sum(-1) + z_loss * z**2


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cross_entropy_is_its_definition(smoothing, z_loss, dtype, tolerances):
    logits, labels = drawn(dtype)
    losses = cross_entropy(logits, labels, label_smoothing=smoothing, z_loss=z_loss)
    assert losses.shape == labels.shape
    assert losses.dtype == torch.promote_types(dtype, torch.float32)
    expected = by_definition(logits, labels, smoothing, z_loss)
    close = tolerances.FP64_OP if dtype == torch.float64 else tolerances.FP32_OP
    torch.testing.assert_close(losses.double(), expected, rtol=close, atol=close)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    (exact,) = torch.autograd.grad(expected.sum(), logits)
    rounding = tolerances.BF16_OP if dtype == torch.bfloat16 else close
    torch.testing.assert_close(gradient, exact, rtol=rounding, atol=rounding)


def test_smoothing_is_that_of_torch():
    logits, labels = drawn()
    expected = F.cross_entropy(logits.mT, labels, reduction="none", label_smoothing=0.1)
    found = cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_masked_lm_leaves_out_what_was_not_masked():
    logits, labels = drawn()
    masked = torch.tensor([[True, False, False, True, False], [False, True, False, False, False]])
    options = {"label_smoothing": 0.1, "z_loss": 1e-3}
    losses = masked_lm(logits, labels.masked_fill(~masked, NOT_PREDICTED), **options)
    assert torch.equal(losses[masked], cross_entropy(logits, labels, **options)[masked])
    assert bool((losses[~masked] == 0).all())
    losses.sum().backward()
    assert torch.equal((logits.grad != 0).any(-1), masked)


@pytest.mark.parametrize("loss", [cross_entropy, masked_lm])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": -0.1}, r"label_smoothing: must be in \[0, 1\], got -0.1"),
        ({"label_smoothing": 1.5}, r"label_smoothing: must be in \[0, 1\], got 1.5"),
        ({"z_loss": -1.0}, r"z_loss: must be a finite number of at least 0, got -1.0"),
        ({"z_loss": float("nan")}, r"z_loss: must be a finite number of at least 0, got nan"),
    ],
)
def test_options_out_of_range(loss, options, message):
    with pytest.raises(ValueError, match=message):
        loss(*drawn(), **options)


def test_a_model_takes_another_loss(make_model, tokens):
    model = make_model(torch.float64)
    inputs, labels = tokens(2, 7)
    weights = torch.rand(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    op = partial(cross_entropy, label_smoothing=0.2, z_loss=0.1)
    expected = (op(model(inputs), labels) * weights).sum()
    model.head_loss.op = op
    model.head_loss.chunk_tokens = 5
    torch.testing.assert_close(model.train_loss(inputs, labels, weights), expected)
