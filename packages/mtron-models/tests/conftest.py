import runpy
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mtron_models import LlamaConfig, build, config_from_dict, initialize

FAMILIES = tomllib.loads(Path(__file__).with_name("tiny_families.toml").read_text("utf-8"))


def pytest_generate_tests(metafunc):
    """Run a test once for every case of the table that its arguments name.

    `family` stands for all, `decoder` for those of decoders, `plain_decoder` for the first one of
    each `model_type`.
    """
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", [name for kind in FAMILIES.values() for name in kind])
    if "decoder" in metafunc.fixturenames:
        metafunc.parametrize("decoder", list(FAMILIES["decoders"]))
    if "plain_decoder" in metafunc.fixturenames:
        metafunc.parametrize("plain_decoder", first_of_each_type())


def first_of_each_type():
    """The first case of every `model_type` that is a decoder."""
    first = {}
    for case, values in FAMILIES["decoders"].items():
        first.setdefault(values["model_type"], case)
    return list(first.values())


@pytest.fixture
def family_config():
    """The configuration of a case of `tiny_families.toml`; fields can be changed."""

    def make(case, **fields):
        known = {name: values for kind in FAMILIES.values() for name, values in kind.items()}
        return config_from_dict({**known[case], **fields})

    return make


@pytest.fixture
def family_model(family_config):
    """An initialized model of a case of `tiny_families.toml`."""

    def make(case, dtype=torch.float64, seed=0, **fields):
        model = build(family_config(case, **fields), device="cpu", dtype=dtype)
        initialize(model, seed)
        return model

    return make


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
