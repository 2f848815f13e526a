import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mtron_optim.kernels.embedding import deterministic_embedding
from mtron_optim.kernels.linear import attach_onednn, onednn_linear
from mtron_optim.kernels.products import onednn_is_available, onednn_product

needs_onednn = pytest.mark.skipif(not onednn_is_available(), reason="this torch has no oneDNN")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_near(ours, exact, tolerance):
    limit = tolerance * max([1.0, *exact.abs().flatten().tolist()])
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=limit)


@needs_onednn
@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 70),
    k=st.integers(1, 70),
    n=st.integers(1, 70),
    transposed=st.tuples(st.booleans(), st.booleans()),
    strided=st.booleans(),
)
def test_products_of_any_shape_and_strides(m, k, n, transposed, strided, tolerances):
    step = 2 if strided else 1
    left = random(k * step, m).T if transposed[0] else random(m, k * step)
    right = random(n * step, k).T if transposed[1] else random(k, n * step)
    left, right = left[:, ::step], right[:, ::step]
    product = onednn_product(left, right)
    assert product.is_contiguous()
    assert_near(product, left.double() @ right.double(), tolerances.FP32_PRODUCT)


@needs_onednn
@pytest.mark.parametrize("shape", [(7, 5, 24), (9, 24), (24,), (0, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_forward_and_backward(shape, bias, tolerances):
    layer, x = nn.Linear(24, 33, bias), random(*shape).requires_grad_()
    exact, exact_x = nn.Linear(24, 33, bias).double(), x.detach().double().requires_grad_()
    exact.load_state_dict(layer.state_dict())
    ours, reference = onednn_linear(x, layer.weight, layer.bias), exact(exact_x)
    assert ours.shape == reference.shape
    assert_near(ours, reference.detach(), tolerances.FP32_PRODUCT)
    upstream = random(*ours.shape, seed=1)
    ours.backward(upstream)
    reference.backward(upstream.double())
    assert_near(x.grad, exact_x.grad, tolerances.FP32_PRODUCT)
    for a, b in zip(layer.parameters(), exact.parameters(), strict=True):
        assert_near(a.grad, b.grad, 4 * tolerances.FP32_PRODUCT)
    assert layer.weight.grad.is_contiguous()


@needs_onednn
def test_linear_second_derivatives(tolerances):
    """The operator is made of itself, so it can be differentiated again."""

    def penalty(linear, x, w):
        (g,) = torch.autograd.grad(linear(x, w).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), w)[0]

    x, w = random(5, 8).requires_grad_(), random(6, 8, seed=1).requires_grad_()
    reference = penalty(
        nn.functional.linear,
        x.detach().double().requires_grad_(),
        w.detach().double().requires_grad_(),
    )
    assert_near(penalty(onednn_linear, x, w), reference, 4 * tolerances.FP32_PRODUCT)


@needs_onednn
def test_the_operator_keeps_torchs_rules():
    args = (random(5, 8).requires_grad_(), random(6, 8).requires_grad_())
    torch.library.opcheck(torch.ops.mtron_optim.linear.default, args)
    args = (random(6, 8).requires_grad_(), torch.tensor([[3, 1, 3], [0, 2, 3]]))
    torch.library.opcheck(torch.ops.mtron_optim.embedding.default, args)


@needs_onednn
def test_modules_keep_hooks_and_names(make_model, make_batch, tolerances):
    model, plain = make_model(), make_model()
    names, seen = list(model.state_dict()), []
    model.head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert attach_onednn(model, "onednn") == 7
    assert list(model.state_dict()) == names
    loss, reference = model.train_loss(*make_batch()), plain.train_loss(*make_batch())
    loss.backward()
    reference.backward()
    assert seen == [torch.Size([3, 10, 40])]
    assert loss.item() == pytest.approx(reference.item(), rel=tolerances.FP32_LOSS)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= tolerances.FP32_GRADIENT * b.grad.norm()


@needs_onednn
def test_what_cannot_be_multiplied_so(make_model):
    with pytest.raises(ValueError, match=r"kernels\.matmul.*layers\.0\.up in torch\.float64"):
        attach_onednn(make_model(dtype=torch.float64), "onednn")
    assert attach_onednn(make_model(dtype=torch.float64), "auto") == 0
    assert attach_onednn(make_model(), "torch") == 0


@needs_onednn
def test_autocast_still_works():
    layer = nn.Linear(8, 8)
    attach_onednn(layer, "onednn")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(random(3, 8)).dtype == torch.bfloat16


def test_embedding_equals_torch():
    weight = random(10, 6).requires_grad_()
    indices = torch.tensor([[3, 1, 3], [0, 2, 3]])
    upstream = random(2, 3, 6, seed=1)
    output = deterministic_embedding(indices, weight)
    output.backward(upstream)
    ours, weight.grad = weight.grad, None
    reference = nn.functional.embedding(indices, weight)
    reference.backward(upstream)
    assert torch.equal(output, reference)
    assert torch.equal(ours, weight.grad)
