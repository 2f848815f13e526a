import subprocess
import sys

import pytest

import mtron_models

TORCH_FREE = [
    "mtron_models",
    "mtron_models.adapters",
    "mtron_models.adapters.config",
    "mtron_models.adapters.rules",
    "mtron_models.config",
    "mtron_models.counts",
    "mtron_models.layout",
    "mtron_models.published",
    "mtron_models.registry",
    "mtron_models.llama",
    "mtron_models.llama.config",
    "mtron_models.llama.layout",
]


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_configuration_needs_no_torch():
    code = f"""
import sys
for name in {TORCH_FREE!r}:
    __import__(name)
from mtron_models import config_from_dict, flops_per_token, num_parameters, Shard
config = config_from_dict(dict(model_type="llama", vocab_size=9, hidden_size=8,
    intermediate_size=8, num_hidden_layers=1, num_attention_heads=2))
layout = config.layout()
assert all(isinstance(layout[name], Shard) for name in layout if "proj.weight" in name)
print(num_parameters(config), flops_per_token(config, 4), "torch" in sys.modules)
"""
    assert run(code).split()[2] == "False"


def test_importing_everything_starts_nothing():
    code = """
import sys, torch, random, threading
before = torch.random.initial_seed(), torch.get_default_dtype(), threading.active_count()
import mtron_models
for name in mtron_models.__all__:
    getattr(mtron_models, name)
after = torch.random.initial_seed(), torch.get_default_dtype(), threading.active_count()
print(before == after, torch.cuda.is_initialized(), "torch.distributed.tensor" in sys.modules)
"""
    assert run(code).split() == ["True", "False", "False"]


def test_every_public_name_resolves():
    for name in mtron_models.__all__:
        assert getattr(mtron_models, name) is not None
    assert mtron_models.__all__ == sorted(mtron_models.__all__, key=lambda n: (n[0].islower(), n))


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mtron_models.nothing
