import copy
import logging
import platform
import sysconfig

import pytest
import torch
from torch import nn

from mtron_optim import KernelConfig, OptimConfig, accelerate, build_optimizer, shards_of
from mtron_optim.kernels.products import onednn_is_available

PLAIN = KernelConfig(matmul="torch", keep_memory=False)
COMPILED = KernelConfig(
    compile=True, matmul="onednn" if onednn_is_available() else "torch", keep_memory=False
)
SHAPE = (4, 64)


@pytest.fixture(autouse=True)
def forget_compiled_code():
    yield
    torch._dynamo.reset()


@pytest.fixture
def compiled(make_model):
    model = make_model()
    accelerate(model, COMPILED)
    return model


def step(model, batch):
    model.zero_grad()
    loss = model.train_loss(*batch, None)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


def test_compiled_equals_plain_and_leaves_the_model_alone(
    compiled, make_model, make_batch, tolerances
):
    plain, seen = make_model(), []
    compiled.layers[0]["up"].register_forward_hook(lambda *_: seen.append(1))
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in compiled.named_modules()] == [n for n, _ in plain.named_modules()]
    for index in range(2):
        batch = make_batch(index, shape=SHAPE)
        (loss, gradients), (reference, exact) = step(compiled, batch), step(plain, batch)
        assert loss == pytest.approx(reference, rel=tolerances.FP32_LOSS)
        for name, gradient in gradients.items():
            error = (gradient - exact[name]).norm()
            assert error <= tolerances.FP32_GRADIENT * exact[name].norm(), name
    assert seen, "the forward hook of a layer did not run"


def test_two_threads_give_the_same_bits_every_time(compiled, make_batch):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        batch = make_batch(shape=(8, 256))
        loss, gradients = step(compiled, batch)
        for _ in range(30):
            again, others = step(compiled, batch)
            assert again == loss
            for name, gradient in gradients.items():
                assert torch.equal(gradient, others[name]), name
    finally:
        torch.set_num_threads(threads)


def test_compiled_once_for_all_steps_and_not_for_validation(compiled, make_batch):
    counters = torch._dynamo.utils.counters
    counters.clear()
    optimizer = build_optimizer(shards_of(compiled), OptimConfig(kind="muon"))
    for index in range(4):
        optimizer.zero_grad()
        compiled.train_loss(*make_batch(index, shape=SHAPE), None).backward()
        optimizer.step()
        with torch.no_grad():
            compiled.train_loss(*make_batch(index, shape=(2, 7)), None)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_graph_break_is_an_error(make_model, make_batch):
    class Printing(nn.Module):
        def forward(self, x):
            torch._dynamo.graph_break()
            return x

    model = make_model()
    model.layers[0]["norm"] = Printing()
    accelerate(model, COMPILED)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        model.train_loss(*make_batch(), None)


def test_without_compile_the_method_stays(make_model):
    model = make_model()
    accelerate(model, PLAIN)
    assert "train_loss" not in vars(model)
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_model_without_the_seam(make_batch):
    with pytest.raises(ValueError, match=r"kernels\.compile: Linear has no method train_loss"):
        accelerate(nn.Linear(2, 2), COMPILED)
    accelerate(nn.Linear(2, 2), PLAIN)


def test_a_machine_without_a_compiler(make_model):
    missing = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, pytest.raises(ValueError, match=r"kernels\.compile: needs a C\+\+ compiler"):
        accelerate(make_model(), COMPILED)


def test_a_machine_without_pythons_headers(make_model, monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with pytest.raises(ValueError, match=r"kernels\.compile: needs Python's headers"):
        accelerate(make_model(), COMPILED)


def test_a_copy_is_a_model_of_its_own(compiled, make_batch):
    twin = copy.deepcopy(compiled)
    step(twin, make_batch(shape=SHAPE))
    assert all(parameter.grad is None for parameter in compiled.parameters())


def test_twice_is_once(compiled, make_batch):
    method = compiled.train_loss
    accelerate(compiled, COMPILED)
    assert compiled.train_loss is method


def test_the_choices_are_logged_once(make_model, caplog):
    with caplog.at_level(logging.INFO, logger="mtron_optim"):
        accelerate(make_model(), PLAIN)
    assert [record.getMessage() for record in caplog.records] == ["accelerate: nothing to do here"]
