import json

import numpy as np
import pytest
import torch

from mtron_optim import OptimConfig, build_optimizer, export_state, load_state, shards_of

CONFIGS = {
    "adamw": OptimConfig(lr=0.01, weight_decay=0.1),
    "muon": OptimConfig(kind="muon", lr=0.01, weight_decay=0.1),
}


def through_a_file(tensors, scalars):
    """What a checkpoint does: raw bytes and JSON."""
    arrays = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
    return (
        {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()},
        json.loads(json.dumps(scalars)),
    )


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resume_is_bitwise(kind, dtype, make_model, train):
    model = make_model(dtype=dtype)
    optimizer = build_optimizer(shards_of(model), CONFIGS[kind])
    losses = train(model, optimizer, 0, 5)
    saved = through_a_file(*export_state(optimizer))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    losses += train(model, optimizer, 5, 10)

    resumed_model = make_model(dtype=dtype)
    resumed_model.load_state_dict(start)
    resumed = build_optimizer(shards_of(resumed_model), CONFIGS[kind])
    load_state(resumed, *saved)
    assert train(resumed_model, resumed, 5, 10) == losses[5:]
    for (name, a), b in zip(model.named_parameters(), resumed_model.parameters(), strict=True):
        assert torch.equal(a, b), name
    ours, theirs = export_state(optimizer), export_state(resumed)
    assert ours[1] == theirs[1]
    assert ours[0].keys() == theirs[0].keys()
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in ours[0])


def test_without_the_state_it_is_not_the_same(make_model, train):
    """The test above could not pass by accident."""
    model = make_model()
    optimizer = build_optimizer(shards_of(model), CONFIGS["muon"])
    train(model, optimizer, 0, 5)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    losses = train(model, optimizer, 5, 10)
    model.load_state_dict(start)
    fresh = build_optimizer(shards_of(model), CONFIGS["muon"])
    assert train(model, fresh, 5, 10) != losses


@pytest.mark.parametrize("kind", CONFIGS)
def test_names_and_shapes(kind, make_model, train):
    model = make_model()
    optimizer = build_optimizer(shards_of(model), CONFIGS[kind])
    train(model, optimizer, 0, 3)
    tensors, scalars = export_state(optimizer)
    parameters = dict(model.named_parameters())
    expected = set()
    for name, parameter in parameters.items():
        muon = kind == "muon" and parameter.ndim == 2 and name.startswith("layers")
        for state in ("momentum_buffer",) if muon else ("exp_avg", "exp_avg_sq"):
            expected.add(f"{state}/{name}")
    assert tensors.keys() == expected
    for full_name, tensor in tensors.items():
        assert tensor.shape == parameters[full_name.partition("/")[2]].shape
    assert scalars == {"step": 3, "step_of": {}, "fresh": []}


def test_before_the_first_step_there_is_nothing(make_model, train):
    first, second = make_model(), make_model()
    a = build_optimizer(shards_of(first), CONFIGS["muon"])
    b = build_optimizer(shards_of(second), CONFIGS["muon"])
    tensors, scalars = export_state(a)
    assert tensors == {}
    assert len(scalars["fresh"]) == len(list(first.parameters()))
    load_state(b, tensors, scalars)
    assert train(first, a, 0, 2) == train(second, b, 0, 2)


def test_parameters_that_were_updated_less_often(make_model, train, make_batch):
    def run(model, optimizer, first, last):
        for step in range(first, last):
            optimizer.zero_grad()
            model.train_loss(*make_batch(step)).backward()
            model.layers[1]["mix"].weight.grad = None
            if step < 2:
                model.head.weight.grad = None
            optimizer.step()

    model = make_model()
    optimizer = build_optimizer(shards_of(model), CONFIGS["adamw"])
    run(model, optimizer, 0, 4)
    tensors, scalars = through_a_file(*export_state(optimizer))
    assert scalars == {
        "step": 4,
        "step_of": {"head.weight": 2},
        "fresh": ["layers.1.mix.weight"],
    }
    other = make_model()
    other.load_state_dict(model.state_dict())
    resumed = build_optimizer(shards_of(other), CONFIGS["adamw"])
    load_state(resumed, tensors, scalars)
    run(model, optimizer, 4, 6)
    run(other, resumed, 4, 6)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_the_loaded_state_is_a_copy(make_model, train):
    model = make_model()
    optimizer = build_optimizer(shards_of(model), CONFIGS["muon"])
    train(model, optimizer, 0, 1)
    tensors, scalars = through_a_file(*export_state(optimizer))
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    load_state(optimizer, tensors, scalars)
    train(model, optimizer, 1, 2)
    assert all(torch.equal(before[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("exp_avg/embed.weight"), r"exp_avg/embed\.weight: is missing"),
        (lambda t: t.update({"exp_avg/x": torch.ones(1)}), "exp_avg/x: .* no such state"),
        (
            lambda t: t.update({"exp_avg/embed.weight": torch.ones(2, 2)}),
            r"exp_avg/embed\.weight: must be torch\.float32 of shape \(40, 24\)",
        ),
        (
            lambda t: t.update({"exp_avg/embed.weight": torch.ones(40, 24).double()}),
            r"exp_avg/embed\.weight: .*got torch\.float64",
        ),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(damage, message, make_model, train):
    model = make_model()
    optimizer = build_optimizer(shards_of(model), CONFIGS["adamw"])
    train(model, optimizer, 0, 2)
    tensors, scalars = through_a_file(*export_state(optimizer))
    before = {name: t.clone() for name, t in export_state(optimizer)[0].items()}
    damage(tensors)
    with pytest.raises(ValueError, match=message):
        load_state(optimizer, tensors, scalars)
    after = export_state(optimizer)[0]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_kind_of_optimizer_is_refused(make_model, train):
    model = make_model()
    optimizer = build_optimizer(shards_of(model), CONFIGS["adamw"])
    train(model, optimizer, 0, 1)
    other = build_optimizer(shards_of(model), CONFIGS["muon"])
    with pytest.raises(ValueError, match=r"momentum_buffer/layers.*optim section"):
        load_state(other, *export_state(optimizer))
