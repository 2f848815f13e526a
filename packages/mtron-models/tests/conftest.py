import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mtron_models import LlamaConfig, build, initialize


@pytest.fixture(scope="session")
def tolerances():
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tolerances.py"))))


@pytest.fixture
def make_config():
    """A tiny configuration with odd sizes; any field can be set."""

    def make(**fields):
        defaults = {
            "vocab_size": 101,
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
        }
        return LlamaConfig(**{**defaults, **fields})

    return make


@pytest.fixture
def make_model(make_config):
    """An initialized model of `make_config`, with larger weights than usual so that all matters."""

    def make(dtype=torch.float32, seed=0, **fields):
        fields.setdefault("initializer_range", 0.2)
        model = build(make_config(**fields), dtype=dtype).to_empty(device="cpu")
        initialize(model, seed)
        return model

    return make


@pytest.fixture
def tokens():
    """Reproducible random tokens and labels, each `[batch, seq]`."""

    def make(batch, seq, vocab_size=101, seed=0):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(vocab_size, (batch, seq + 1), generator=generator)
        return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()

    return make
