import copy

import pytest
import torch
from torch import nn

from mtron_optim import Muon, MuonConfig, polynomials
from mtron_optim import muon as muon_module
from mtron_optim.kernels.products import onednn_is_faster

SHAPES = [(24, 24), (72, 24), (24, 72), (24, 72), (160, 200), (130, 400)]


def parameters(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def set_gradients(params, step):
    generator = torch.Generator().manual_seed(1000 + step)
    for parameter in params:
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.grad = noise.to(parameter.dtype)


def reference_step(weights, means, grads, lr, decay, config):
    """One update by the definition, in fp64 with an SVD, one matrix at a time."""
    for weight, mean, grad in zip(weights, means, grads, strict=True):
        mean.mul_(config.momentum).add_(grad, alpha=1 - config.momentum)
        m = config.momentum * mean + (1 - config.momentum) * grad if config.nesterov else mean
        u, s, v = torch.linalg.svd(m, full_matrices=False)
        s = s / s.norm()
        for a, b, c in polynomials(config.coefficients, config.iterations):
            s = a * s + b * s**3 + c * s**5
        rows, columns = weight.shape
        if config.scale == "original":
            factor = max(1, rows / columns) ** 0.5
        else:
            factor = 0.2 * max(rows, columns) ** 0.5
        weight.mul_(1 - lr * decay).sub_(lr * factor * (u @ torch.diag(s) @ v))


@pytest.mark.parametrize(
    "config",
    [
        MuonConfig(),
        MuonConfig(scale="original", nesterov=False, momentum=0.8),
        MuonConfig(coefficients="polar_express", iterations=4),
    ],
    ids=["default", "original", "polar_express"],
)
def test_equals_the_definition_in_fp64(config, tolerances):
    params = parameters(torch.float64)
    weights = [p.detach().clone() for p in params]
    means = [torch.zeros_like(w) for w in weights]
    optimizer = Muon(params, lr=0.02, weight_decay=0.3, config=config)
    for step in range(5):
        set_gradients(params, step)
        reference_step(weights, means, [p.grad for p in params], 0.02, 0.3, config)
        optimizer.step()
    for ours, reference in zip(params, weights, strict=True):
        torch.testing.assert_close(ours.detach(), reference, rtol=0, atol=10 * tolerances.FP64)


def test_fp32_stays_close_to_fp64(tolerances):
    params = parameters()
    weights = [p.detach().double() for p in params]
    means = [torch.zeros_like(w) for w in weights]
    optimizer = Muon(params, lr=0.02, config=MuonConfig(scale="original"))
    for step in range(5):
        set_gradients(params, step)
        grads = [p.grad.double() for p in params]
        reference_step(weights, means, grads, 0.02, 0.0, MuonConfig(scale="original"))
        optimizer.step()
    for ours, reference in zip(params, weights, strict=True):
        error = (ours.detach().double() - reference).abs().max()
        assert error < 5 * 0.02 * 2 * tolerances.FP32_ORTHOGONAL + 1e-6


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_equals_torch_within_bf16(scale, nesterov, tolerances):
    ours, theirs = parameters(), parameters()
    start = [p.detach().clone() for p in ours]
    config = MuonConfig(scale=scale, nesterov=nesterov)
    a = Muon(ours, lr=0.02, weight_decay=0.1, config=config)
    b = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn=scale)
    for step in range(10):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        a.step()
        b.step()
    for mine, other, first in zip(ours, theirs, start, strict=True):
        moved = (other - first).norm()
        assert (mine - other).norm() < tolerances.BF16_TRAINED * moved


def test_matrices_of_one_shape_may_come_in_stacks_of_any_size(monkeypatch):
    shapes = [(24, 72)] * 5
    whole, single = parameters(shapes=shapes), parameters(shapes=shapes)
    a, b = Muon(whole, lr=0.02), Muon(single, lr=0.02)
    for params, optimizer, limit in ((whole, a, 1 << 25), (single, b, 2 * 24 * 72)):
        monkeypatch.setattr(muon_module, "_STACK_ELEMENTS", limit)
        set_gradients(params, 0)
        optimizer.step()
    for x, y in zip(whole, single, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


def test_parameters_without_gradient_are_left_alone():
    params = parameters()
    set_gradients(params, 0)
    params[2].grad = None
    before = copy.deepcopy(params[2].detach())
    optimizer = Muon(params, lr=0.02, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(params[2], before)
    assert params[2] not in optimizer.state


def test_bf16_weights_and_bf16_iterations(tolerances):
    exact, low = parameters(), parameters(torch.bfloat16)
    for params in (exact, low):
        set_gradients(params, 0)
    before = [p.detach().clone() for p in exact]
    Muon(exact, lr=1.0).step()
    Muon(low, lr=1.0, config=MuonConfig(dtype="bfloat16")).step()
    for a, b, first in zip(exact, low, before, strict=True):
        moved = (a - first).norm()
        assert (a - b.float()).norm() < tolerances.BF16_ORTHOGONAL * moved + 0.005 * a.norm()


def test_only_matrices():
    with pytest.raises(ValueError, match=r"Muon: takes matrices.*\(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)


def test_the_faster_library_is_a_matter_of_the_processor():
    cpu = torch.device("cpu")
    assert not onednn_is_faster(cpu, torch.float64)
    assert not onednn_is_faster(torch.device("cuda"), torch.float32)
    avx512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    assert onednn_is_faster(cpu, torch.float32) <= avx512
