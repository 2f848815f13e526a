import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim._muon import _zeropower_via_newtonschulz

from mtron_optim import orthogonalize, polynomials
from mtron_optim.kernels.products import onednn_is_available, onednn_product


def matrix(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_svd(x, steps):
    """Apply the polynomials to the singular values one by one: the definition, in fp64."""
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    s = s / s.square().sum().sqrt()
    for a, b, c in steps:
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    kind=st.sampled_from(["jordan", "polar_express"]),
    iterations=st.integers(1, 8),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_equals_the_definition_in_fp64(rows, columns, kind, iterations, scale, tolerances):
    x = matrix(rows, columns, seed=rows * 41 + columns) * scale
    steps = polynomials(kind, iterations)
    torch.testing.assert_close(
        orthogonalize(x, steps), by_svd(x, steps), rtol=0, atol=10 * tolerances.FP64
    )


@pytest.mark.parametrize("shape", [(96, 32), (32, 96), (64, 64), (48, 40)])
def test_fp32_is_close_to_fp64(shape, tolerances):
    x, steps = matrix(*shape), polynomials("jordan", 5)
    ours = orthogonalize(x.float(), steps)
    torch.testing.assert_close(
        ours.double(), by_svd(x, steps), rtol=0, atol=tolerances.FP32_ORTHOGONAL
    )


@pytest.mark.parametrize("shape", [(96, 32), (32, 96), (64, 64)])
@pytest.mark.parametrize("iterations", [5, 8, 12])
@pytest.mark.parametrize("kind", ["jordan", "polar_express"])
def test_small_singular_values_survive_the_square(kind, iterations, shape, tolerances):
    """Going through X^T X squares the condition; the factor must keep its small directions."""
    u, _, v = torch.linalg.svd(matrix(*shape), full_matrices=False)
    x = (u @ torch.diag(torch.logspace(0, -5, u.shape[1], dtype=torch.float64)) @ v).float()
    steps = polynomials(kind, iterations)
    exact = orthogonalize(x.double(), steps)
    error = (orthogonalize(x, steps) - exact).norm() / exact.norm()
    assert error < tolerances.FP32_ILL_CONDITIONED


@pytest.mark.parametrize("shape", [(96, 32), (32, 96), (64, 64)])
def test_equals_torch_within_bf16(shape, tolerances):
    x, steps = matrix(*shape, dtype=torch.float32), polynomials("jordan", 5)
    theirs = _zeropower_via_newtonschulz(x, (3.4445, -4.7750, 2.0315), 5, 1e-7).float()
    limit = tolerances.BF16_ORTHOGONAL * theirs.norm()
    assert (orthogonalize(x, steps) - theirs).norm() < limit
    assert (orthogonalize(x.bfloat16(), steps).float() - theirs).norm() < limit
    # The difference is torch's rounding: it is as far from the definition in fp64.
    their_error = (theirs - by_svd(x.double(), steps)).norm().item()
    assert (orthogonalize(x, steps) - theirs).norm().item() == pytest.approx(their_error, rel=1e-3)


def test_jordan_leaves_singular_values_near_one(tolerances):
    low, high = tolerances.JORDAN_SINGULAR_VALUES
    x = torch.diag(torch.linspace(0.01, 1, 50, dtype=torch.float64))
    x /= x.norm() / torch.linalg.matrix_norm(x, 2)  # the largest is 1 after the division below
    values = torch.linalg.svdvals(orthogonalize(x, polynomials("jordan", 5)))
    assert low < values.min()
    assert values.max() < high


def test_polar_express_converges_to_the_polar_factor(tolerances):
    x = matrix(30, 20)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    ours = orthogonalize(x, polynomials("polar_express", 8))
    assert (ours - u @ v).abs().max() < tolerances.POLAR_EXPRESS_SINGULAR_VALUES
    exact = orthogonalize(x, polynomials("polar_express", 12))
    torch.testing.assert_close(exact, u @ v, rtol=0, atol=tolerances.FP64)


def test_polar_express_after_five_is_closer_than_jordan():
    x = matrix(60, 20)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    errors = {
        kind: (orthogonalize(x, polynomials(kind, 5)) - u @ v).norm()
        for kind in ("jordan", "polar_express")
    }
    assert errors["polar_express"] < 0.5 * errors["jordan"]


@pytest.mark.parametrize("shape", [(5, 12, 30), (5, 30, 12), (5, 16, 16)])
def test_a_stack_is_done_one_by_one(shape, tolerances):
    x, steps = matrix(*shape), polynomials("jordan", 5)
    single = torch.stack([orthogonalize(one, steps) for one in x])
    torch.testing.assert_close(orthogonalize(x, steps), single, rtol=0, atol=tolerances.FP64)


@pytest.mark.skipif(not onednn_is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("shape", [(96, 32), (32, 96), (64, 64)])
def test_with_onednn(shape, tolerances):
    x, steps = matrix(*shape), polynomials("jordan", 5)
    ours = orthogonalize(x.float(), steps, product=onednn_product).double()
    torch.testing.assert_close(ours, by_svd(x, steps), rtol=0, atol=tolerances.FP32_ORTHOGONAL)


def test_nothing_gives_nothing():
    for shape in ((4, 4), (4, 12), (12, 4)):
        assert orthogonalize(torch.zeros(shape), polynomials("jordan", 5)).eq(0).all()


def test_the_input_is_left_alone():
    x = matrix(20, 50)
    before = x.clone()
    orthogonalize(x, polynomials("jordan", 5))
    assert torch.equal(x, before)
