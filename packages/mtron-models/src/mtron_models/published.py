"""The sizes of published models by name, as in their `config.json`. Imports no torch."""

import tomllib
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from mtron_models.config import ModelConfig, config_from_dict


def presets() -> tuple[str, ...]:
    """Return the names of all presets, families together and small models first."""
    return tuple(_table())


def preset(name: str) -> ModelConfig:
    """Return the configuration of a published model.

    Args:
        name: such as "llama-3.1-8b"; those of `presets()`.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in _table():
        near = get_close_matches(name, _table(), n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_table())}"
        raise ValueError(f"preset: there is none of this name, got {name!r}; {remedy}")
    return config_from_dict(_values(name))


@cache
def _table() -> dict[str, dict[str, Any]]:
    text = files("mtron_models").joinpath("published.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _values(name: str) -> dict[str, Any]:
    """Return the fields of a preset, with those of the model that it is like."""
    own = dict(_table()[name])
    like, none = own.pop("like", None), own.pop("none", ())
    return ({} if like is None else _values(like)) | own | dict.fromkeys(none)
