"""Rotary positions in config.json, which has had three forms of them, and in our configs.

Transformers 5 has one table `rope_parameters`; older versions have `rope_theta` beside
`rope_scaling`, in which the kind was once called `type`. Ours are the fields `rope_theta` and
`rope_scaling`, a table of all its fields or null.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtron_ckpt.conversion.config_table import Check, boolean, count, number, optional, positive
from mtron_ckpt.conversion.names import Config

_SCALING: dict[str, tuple[Check, Any]] = {
    "factor": (positive, None),
    "original_max_position_embeddings": (optional(count), None),
    "low_freq_factor": (optional(positive), None),
    "high_freq_factor": (optional(positive), None),
    "beta_fast": (optional(positive), None),
    "beta_slow": (optional(positive), None),
    "attention_factor": (optional(positive), None),
    "mscale": (optional(number), None),
    "mscale_all_dim": (optional(number), None),
    "truncate": (boolean, True),
}
"""The fields of our `rope_scaling` beside `rope_type`, with their defaults."""

_LENGTH = "original_max_position_embeddings"
_OF_KIND: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor", _LENGTH),
    "yarn": (
        *("factor", _LENGTH, "beta_fast", "beta_slow", "attention_factor"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
    "llama3": ("factor", _LENGTH, "low_freq_factor", "high_freq_factor"),
}
"""The kinds of scaling, with the fields that each has."""


@dataclass(frozen=True)
class Rope:
    """The same rotary positions in all layers.

    Attributes:
        default_theta: the base where config.json has none.
        partial: whether our config has `partial_rotary_factor`.
        default_partial: that factor where config.json has none.
    """

    default_theta: float = 10000.0
    partial: bool = False
    default_partial: float = 1.0

    @property
    def ours(self) -> tuple[str, ...]:
        """The fields of our config."""
        return ("rope_theta", "rope_scaling", *self._partial)

    @property
    def theirs(self) -> tuple[str, ...]:
        """The keys of config.json."""
        return ("rope_theta", "rope_scaling", "rope_parameters", *self._partial)

    @property
    def _partial(self) -> tuple[str, ...]:
        return ("partial_rotary_factor",) if self.partial else ()

    def from_hf(self, hf: Mapping[str, Any]) -> Config:
        """Return our fields."""
        tables = {key: hf[key] for key in ("rope_parameters", "rope_scaling") if hf.get(key)}
        theta = _agreed("rope_theta", hf, tables)
        partial = _agreed("partial_rotary_factor", hf, tables)
        if not self.partial and partial not in (None, 1.0):
            where = next((k for k, t in tables.items() if "partial_rotary_factor" in t), "")
            name = f"{where}.partial_rotary_factor" if where else "partial_rotary_factor"
            raise ValueError(f"{name}: only 1.0 can be honoured, got {partial!r}")
        scalings = [scaling_from_hf(key, table) for key, table in tables.items()]
        if any(scaling != scalings[0] for scaling in scalings):
            raise ValueError(
                f"rope_scaling: contradicts rope_parameters, got {tables['rope_scaling']!r} and "
                f"{tables['rope_parameters']!r}; leave out one of them"
            )
        model: Config = {
            "rope_theta": self.default_theta if theta is None else theta,
            "rope_scaling": scalings[0] if scalings else None,
        }
        if self.partial:
            factor = self.default_partial if partial is None else partial
            model["partial_rotary_factor"] = factor
        return model

    def to_hf(self, model: Config) -> dict[str, Any]:
        """Return their keys, in the new form and in the old one."""
        theta, scaling = model["rope_theta"], scaling_to_hf(model["rope_scaling"])
        partial = {name: model[name] for name in self._partial}
        hf = {"rope_theta": theta, "rope_parameters": {**scaling, **partial, "rope_theta": theta}}
        if model["rope_scaling"] is not None:
            hf["rope_scaling"] = {**scaling, **partial}
        return hf | partial


@dataclass(frozen=True)
class RopeByLayerType:
    """Two bases: one for layers that see all, which may be scaled, one for layers with windows.

    Attributes:
        default_theta: the base of layers that see all where config.json has none.
        default_local: the base of layers with windows where config.json has none.
        local: our field for the latter.
    """

    default_theta: float = 1000000.0
    default_local: float = 10000.0
    local: str = "rope_local_base_freq"

    @property
    def ours(self) -> tuple[str, ...]:
        """The fields of our config."""
        return ("rope_theta", "rope_scaling", self.local)

    @property
    def theirs(self) -> tuple[str, ...]:
        """The keys of config.json."""
        return ("rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq")

    def from_hf(self, hf: Mapping[str, Any]) -> Config:
        """Return our fields."""
        nested = hf.get("rope_parameters") or {}
        unknown = set(nested) - {"full_attention", "sliding_attention"}
        if unknown:
            raise ValueError(
                "rope_parameters: must hold a table for full_attention and one for "
                f"sliding_attention, got {nested!r}"
            )
        old = {key: hf[key] for key in ("rope_theta", "rope_scaling") if key in hf}
        full = Rope(self.default_theta).from_hf(
            old | {"rope_parameters": nested.get("full_attention")}
        )
        windowed = Rope(self.default_local).from_hf(
            {
                "rope_theta": hf.get("rope_local_base_freq"),
                "rope_parameters": nested.get("sliding_attention"),
            }
        )
        if windowed["rope_scaling"] is not None:
            raise ValueError(
                "rope_parameters.sliding_attention: only the default rotary embedding can be "
                f"honoured, got {nested['sliding_attention']!r}"
            )
        return full | {self.local: windowed["rope_theta"]}

    def to_hf(self, model: Config) -> dict[str, Any]:
        """Return their keys, in the new form and in the old one."""
        hf = Rope().to_hf(model)
        local = model[self.local]
        hf["rope_local_base_freq"] = local
        hf["rope_parameters"] = {
            "full_attention": hf["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
        return hf


def scaling_from_hf(key: str, table: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return our `rope_scaling` for a table of theirs, or None for plain rotary positions.

    Args:
        key: what the table is called, for messages.
        table: `rope_parameters` or `rope_scaling`.

    Raises:
        ValueError: naming what cannot be honoured.
    """
    kind = table.get("rope_type", table.get("type")) or "default"
    beside = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    given = {n: v for n, v in table.items() if n not in beside and v is not None}
    if kind == "default" and not given:
        return None
    if kind not in _OF_KIND:
        known = ", ".join(_OF_KIND)
        raise ValueError(f"{key}.rope_type: only default, {known} can be honoured, got {kind!r}")
    strange = sorted(set(given) - set(_OF_KIND[kind]))
    if strange:
        raise ValueError(
            f"{key}.{strange[0]}: has no effect with rope_type {kind!r} or cannot be honoured, "
            f"got {given[strange[0]]!r}"
        )
    scaling: dict[str, Any] = {"rope_type": kind}
    for name, (check, default) in _SCALING.items():
        scaling[name] = check(f"{key}.{name}", given.get(name, default))
    return scaling


def scaling_to_hf(scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a table of theirs for our `rope_scaling`, without the base."""
    if scaling is None:
        return {"rope_type": "default"}
    defaults = {name: default for name, (_, default) in _SCALING.items()}
    return {n: v for n, v in scaling.items() if n == "rope_type" or v != defaults.get(n)}


def _agreed(
    name: str, hf: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]
) -> float | None:
    """The value of `name` in config.json and in its tables, which must all be the same."""
    for key, table in tables.items():
        if not isinstance(table, Mapping):
            raise ValueError(f"{key}: must be a table, got {table!r}")
    holders = {"": hf} | {f"{key}.": table for key, table in tables.items()}
    values = {
        prefix + name: positive(prefix + name, holder[name])
        for prefix, holder in holders.items()
        if holder.get(name) is not None
    }
    if len(set(values.values())) > 1:
        raise ValueError(f"{name}: contradicts itself, got {values}; leave out all but one")
    return next(iter(values.values()), None)
