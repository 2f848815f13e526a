import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mtron_optim import shards_of


@pytest.fixture(scope="session")
def tolerances():
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tolerances.py"))))


class TinyDecoder(nn.Module):
    """A model with every kind of parameter: embedding, matrices of three shapes, vectors, head."""

    def __init__(self, vocab=40, width=24, layers=2, dtype=torch.float32):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "up": nn.Linear(width, 3 * width, bias=False),
                    "down": nn.Linear(3 * width, width, bias=False),
                    "mix": nn.Linear(width, width),
                    "norm": nn.RMSNorm(width),
                }
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(width, vocab, bias=False)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 0.3 if parameter.ndim > 1 else 1 + 0.1 * noise)
        self.to(dtype)

    def train_loss(self, inputs, labels, weights, context=None):
        x = self.embed(inputs)
        for layer in self.layers:
            x = x + layer["mix"](layer["norm"](x))
            x = x + layer["down"](nn.functional.silu(layer["up"](x)))
        logits = self.head(x).flatten(0, 1)
        losses = nn.functional.cross_entropy(logits, labels.flatten(), reduction="none")
        return (losses.view_as(weights) * weights).sum()


@pytest.fixture
def make_model():
    return TinyDecoder


@pytest.fixture(scope="session")
def make_batch():
    """Return (inputs, labels, weights) of one step; the same step gives the same batch."""

    def make(step=0, vocab=40, shape=(3, 10), dtype=torch.float32):
        generator = torch.Generator().manual_seed(100 + step)
        tokens = torch.randint(0, vocab, (shape[0], shape[1] + 1), generator=generator)
        weights = torch.full(shape, 1 / (shape[0] * shape[1]), dtype=dtype)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights

    return make


@pytest.fixture
def train(make_batch):
    """Take steps [first, last) of a model with an optimizer; return the losses."""

    def run(model, optimizer, first, last):
        losses = []
        for step in range(first, last):
            optimizer.zero_grad()
            loss = model.train_loss(*make_batch(step, dtype=model.head.weight.dtype))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return run


@pytest.fixture
def parts_of():
    """Shards of which those named claim to be a part of their parameter."""

    def make(model, partial=()):
        return [
            SimpleNamespace(name=s.name, tensor=s.tensor, is_whole=s.name not in partial)
            for s in shards_of(model)
        ]

    return make
