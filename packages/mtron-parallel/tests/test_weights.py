"""Blocks wait for the weights that they use, whoever inside uses them."""

import pytest
import torch
from torch import nn

from mtron_parallel.weights import wait_before_use


class Flat:
    """Weights of a few parameters, which note in a common list that they were waited for."""

    def __init__(self, name, log, *parameters):
        self.name, self.log, self.parameters = name, log, parameters

    def wait(self):
        self.log.append(f"wait {self.name}")


class Noting(nn.Module):
    """Notes that it runs."""

    def __init__(self, name, log, inner):
        super().__init__()
        self.name, self.log, self.inner = name, log, inner

    def forward(self, x):
        self.log.append(self.name)
        return self.inner(x, x, x)[0] if isinstance(self.inner, nn.MultiheadAttention) else x


class Loss(nn.Module):
    def __init__(self, log):
        super().__init__()
        self.log = log

    def forward(self, head, x):
        self.log.append("loss")
        return head.forward(x)


class Model(nn.Module):
    """Blocks of several kinds; each is named in the log when it begins."""

    def __init__(self, log):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.listed = nn.ParameterList([torch.zeros(4)])
        self.first = Noting("first", log, nn.Linear(4, 4))
        self.layers = nn.ModuleDict({"0": Noting("attention", log, nn.MultiheadAttention(4, 2))})
        self.sequence = nn.Sequential(Noting("second", log, nn.Linear(4, 4)), nn.Identity())
        self.head = Noting("head", log, nn.Linear(4, 4))
        self.head_loss = Loss(log)

    def train_loss(self, x):
        x = self.first(x + self.shift + self.listed[0])
        x = self.sequence(self.layers["0"](x))
        return self.head_loss(self.head, x).sum()


def log_of(model, log, *weights):
    """What is waited for early, and the log of a forward pass."""
    early = wait_before_use(model, weights)
    model.train_loss(torch.zeros(3, 4))
    return [flat.name for flat in early], log


@pytest.fixture
def made():
    log = []
    return Model(log), log


def test_each_block_waits_for_its_own(made):
    model, log = made
    names = ("first", "layers", "sequence", "head")
    flats = [Flat(name, log, *getattr(model, name).parameters()) for name in names]
    early, log = log_of(model, log, *flats)
    assert early == []
    assert log == [
        "wait first",
        "first",
        "wait layers",
        "attention",
        "wait sequence",
        "second",
        "wait head",
        "loss",
        "head",
    ]


def test_a_block_waits_for_weights_that_are_used_without_a_call(made):
    """`nn.MultiheadAttention` does not call its output projection."""
    model, log = made
    attention = model.layers["0"].inner
    flat = Flat("projection", log, attention.out_proj.weight)
    _, log = log_of(model, log, flat)
    assert log[1:3] == ["wait projection", "attention"]


def test_what_no_block_owns_is_waited_for_early(made):
    model, log = made
    early, log = log_of(
        model, log, Flat("root", log, model.shift), Flat("list", log, *model.listed.parameters())
    )
    assert early == ["root", "list"]
    assert "wait root" not in log


def test_weights_of_several_blocks_are_waited_for_by_each(made):
    model, log = made
    both = [*model.first.parameters(), *model.head.parameters()]
    _, log = log_of(model, log, Flat("both", log, *both))
    assert log == ["wait both", "first", "attention", "second", "wait both", "loss", "head"]
