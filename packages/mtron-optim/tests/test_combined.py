import copy
import pickle

import pytest
import torch

from mtron_optim import OptimConfig, build_optimizer, shards_of

CONFIG = OptimConfig(kind="muon", lr=0.01)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def test_torchs_own_state_dict_goes_there_and_back(make_model, train):
    model = make_model()
    optimizer = build_optimizer(shards_of(model), CONFIG)
    train(model, optimizer, 0, 2)
    saved, start = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    losses = train(model, optimizer, 2, 5)
    other = make_model()
    other.load_state_dict(start)
    resumed = build_optimizer(shards_of(other), CONFIG)
    resumed.load_state_dict(saved)
    assert train(other, resumed, 2, 5) == losses
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(other), strict=True))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_model_and_optimizer_goes_on_by_itself(copier, make_model, train):
    model = make_model()
    optimizer = build_optimizer(shards_of(model), CONFIG)
    train(model, optimizer, 0, 2)
    optimizer.model = model  # so that one call copies both with their sharing
    twin = copier({"optimizer": optimizer, "parameters": list(model.parameters())})
    before = [p.detach().clone() for p in twin["parameters"]]
    train(model, optimizer, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, twin["parameters"], strict=True))
    for parameter, original in zip(twin["parameters"], model.parameters(), strict=True):
        parameter.grad = original.grad.clone()
    twin["optimizer"].step()
    for ours, original in zip(twin["parameters"], weights(model), strict=True):
        assert torch.equal(ours, original)


def test_groups_and_state_are_those_of_the_parts(make_model, train):
    model = make_model()
    optimizer = build_optimizer(shards_of(model), CONFIG)
    train(model, optimizer, 0, 1)
    assert len(optimizer.state) == len(list(model.parameters()))
    groups = [group for part in optimizer.parts for group in part.param_groups]
    assert all(a is b for a, b in zip(groups, optimizer.param_groups, strict=True))
    assert all(part.state is optimizer.state for part in optimizer.parts)


def test_a_closure_is_called_once_with_gradients_on(make_model, make_batch):
    model = make_model()
    optimizer = build_optimizer(shards_of(model), CONFIG)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = model.train_loss(*make_batch())
        loss.backward()
        calls.append(loss.item())
        return loss

    before = weights(model)
    loss = optimizer.step(closure)
    assert [loss.item()] == calls
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
