import tomllib

import pytest
from pydantic import ValidationError

from mtron_optim import KernelConfig, MuonConfig, OptimConfig


def test_a_file_section_with_lists_is_read():
    text = """
    kind = "muon"
    lr = 1
    betas = [0.9, 0.99]
    embedding_patterns = ["tok.weight"]
    muon = { lr = 0.02, scale = "original", exclude = ["*.gate.weight"] }
    """
    config = OptimConfig(**tomllib.loads(text))
    assert config.lr == 1.0
    assert config.betas == (0.9, 0.99)
    assert config.muon.exclude == ("*.gate.weight",)


def test_a_dump_is_read_back():
    config = OptimConfig(kind="muon", betas=(0.8, 0.9), muon=MuonConfig(iterations=4))
    assert OptimConfig(**config.model_dump(mode="json")) == config
    assert OptimConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"lr": 0}, "lr"),
        ({"lr": "0.1"}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": float("inf")}, "lr"),
        ({"betas": [0.9, 1.0]}, "betas"),
        ({"betas": ["0.9", 0.99]}, "betas"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"kind": "sgd"}, "kind"),
        ({"muon": {"iterations": 0}}, "muon.iterations"),
        ({"muon": {"momentum": 1.0}}, "muon.momentum"),
        ({"learning_rate": 0.1}, "learning_rate"),
    ],
)
def test_bad_values_name_the_field(values, field):
    with pytest.raises(ValidationError) as caught:
        OptimConfig(**values)
    locations = [".".join(map(str, error["loc"])) for error in caught.value.errors()]
    assert any(location.startswith(field) for location in locations), locations


def test_every_field_is_described():
    for config in (OptimConfig, MuonConfig, KernelConfig):
        for name, field in config.model_fields.items():
            assert field.description, f"{config.__name__}.{name}"
