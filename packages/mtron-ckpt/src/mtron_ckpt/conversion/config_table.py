"""Config tables: which field is which in two configs, written once and read in both directions.

A family lists one `Field` per field of our config. What is no matter of a name and a value, such
as rotary positions, is a `Translation`. All refusals name the field.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from mtron_ckpt.conversion.names import Config

Check = Callable[[str, Any], Any]
"""Returns a field's value, or raises ValueError naming the field."""

REQUIRED: Any = object()
"""Stands for the default of a field that has none."""

OURS = "mtron"
"""The key of `config.json` under which fields travel that `transformers` lacks."""

NO_EFFECT = frozenset(
    {
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "cache_implementation",
        "dtype",
        "gradient_checkpointing",
        "model_type",
        "output_router_logits",
        "pretraining_tp",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Keys that change nothing about what a model computes."""

REFUSED = {
    "quantization_config": "quantized weights",
    "auto_map": "a model defined by code inside the checkpoint",
}
"""Keys that no family can honour, with what they stand for."""


def count(name: str, value: Any) -> int:
    """Return a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: must be a positive integer, got {value!r}")
    return value


def natural(name: str, value: Any) -> int:
    """Return an integer that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: must be an integer of at least 0, got {value!r}")
    return value


def number(name: str, value: Any) -> float:
    """Return a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: must be a finite number, got {value!r}")
    return float(value)


def positive(name: str, value: Any) -> float:
    """Return a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}: must be a positive finite number, got {value!r}")
    return float(value)


def probability(name: str, value: Any) -> float:
    """Return a number of at least 0 and less than 1, such as that of a dropout."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name}: must be at least 0 and less than 1, got {value!r}")
    return float(value)


def boolean(name: str, value: Any) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: must be true or false, got {value!r}")
    return value


def one_of(*choices: Any) -> Check:
    """Return a check for one of several values."""

    def check(name: str, value: Any) -> Any:
        if value not in choices:
            known = ", ".join(map(repr, choices))
            raise ValueError(f"{name}: only {known} can be honoured, got {value!r}")
        return value

    return check


def optional(check: Check) -> Check:
    """Return a check for null or what another one accepts."""

    def check_unless_null(name: str, value: Any) -> Any:
        return None if value is None else check(name, value)

    check_unless_null.takes_null = True  # pyright: ignore[reportFunctionMemberAccess]
    return check_unless_null


def list_of(check: Check) -> Check:
    """Return a check for a list of what another one accepts."""

    def check_each(name: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError(f"{name}: must be a list, got {value!r}")
        return [check(f"{name}.{index}", one) for index, one in enumerate(value)]

    return check_each


@dataclass(frozen=True)
class Field:
    """A field of our config that `transformers` has as well.

    Attributes:
        name: in our config.
        check: what its values may be, such as `count` or `optional(count)`.
        default: what `transformers` takes where config.json says nothing: a value, or a function
            of our config as far as it is known, which is in the order of the table.
        theirs: the key in config.json, if it is called otherwise there.
        spellings: other keys of config.json that mean the same.
        null: what null stands for, if that is not the default: a value or a function as above.
        omit_default: whether config.json has the key only where the value is not the default.
    """

    name: str
    check: Check
    default: Any = REQUIRED
    theirs: str = ""
    spellings: tuple[str, ...] = ()
    null: Any = REQUIRED
    omit_default: bool = False

    @property
    def key(self) -> str:
        """The key of config.json under which it is written."""
        return self.theirs or self.name

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys of config.json under which it may be read."""
        return (self.key, *self.spellings)

    def read(self, hf: Mapping[str, Any], model: Config) -> Any:
        """Return the value that a config.json gives.

        Args:
            hf: the content of config.json.
            model: our config as far as it is known.

        Raises:
            ValueError: if it is missing, malformed or contradicts itself.
        """
        given = {key: hf[key] for key in self.keys if key in hf}
        values = list(given.values())
        if any(value != values[0] for value in values[1:]):
            raise ValueError(f"{self.key}: contradicts another spelling of it, got {given}")
        value = values[0] if values else self._default(self.default, model)
        if value is None and not getattr(self.check, "takes_null", False):
            null = self.default if self.null is REQUIRED else self.null
            value = self._default(null, model)
        return self.check(next(iter(given), self.key), value)

    def is_written(self, model: Config) -> bool:
        """Whether config.json gets the key."""
        return not (self.omit_default and model[self.name] == self._default(self.default, model))

    @staticmethod
    def _default(default: Any, model: Config) -> Any:
        if default is REQUIRED:
            return None
        return default(model) if callable(default) else default


class Translation(Protocol):
    """Several fields of ours from and to several keys of theirs."""

    @property
    def ours(self) -> tuple[str, ...]:
        """The fields of our config that it gives."""
        ...

    @property
    def theirs(self) -> tuple[str, ...]:
        """The keys of config.json that it reads."""
        ...

    def from_hf(self, hf: Mapping[str, Any]) -> Config:
        """Return our fields; raise ValueError naming what cannot be honoured."""
        ...

    def to_hf(self, model: Config) -> dict[str, Any]:
        """Return their keys; raise ValueError naming what their format cannot say."""
        ...


@dataclass(frozen=True, kw_only=True)
class ConfigTable:
    """The config of a family.

    Attributes:
        fields: ours that `transformers` has as well.
        sizes: gives the sizes that the shapes of the name table refer to, for our config.
        translations: for what fields cannot say, such as rotary positions.
        token_ids: our fields for special tokens, with the defaults of `transformers`; config.json
            may have several ids or impossible ones where we keep one.
        only: keys of config.json that are no fields of ours, with the one value of each that the
            model can honour.
        ours_only: fields that `transformers` lacks; they travel under the key `mtron`.
        no_effect: keys of config.json that change nothing, beside those of every family.
        refused: keys of config.json that must be empty, with what they stand for.
        checks: functions of our config that raise ValueError where fields do not fit together.
        limits: the same, for what their format cannot say although ours can.
    """

    fields: tuple[Field, ...]
    sizes: Callable[[Config], dict[str, int]]
    translations: tuple[Translation, ...] = ()
    token_ids: Mapping[str, int | None] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    ours_only: tuple[Field, ...] = ()
    no_effect: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[Callable[[Config], None], ...] = ()
    limits: tuple[Callable[[Config], None], ...] = ()

    def from_hf(self, hf: Mapping[str, Any], notes: list[str]) -> Config:
        """Our config for theirs.

        Args:
            hf: the content of `config.json`.
            notes: gets a line for each key that has no effect here.

        Raises:
            ValueError: naming a key that is missing, malformed or cannot be honoured.
        """
        self._refuse(hf)
        model: Config = {}
        for one in self.fields:
            model[one.name] = one.read(hf, model)
        for name, default in self.token_ids.items():
            model[name] = _token_id(name, hf.get(name, default), model["vocab_size"], notes)
        for translation in self.translations:
            model |= translation.from_hf(hf)
        model |= self._read_ours_only(hf)
        for check in self.checks:
            check(model)
        ignored = sorted(set(hf) - self._known_keys())
        notes.extend(f"config.json: {name} has no effect" for name in ignored)
        return model

    def to_hf(self, model: Config) -> dict[str, Any]:
        """Their config for ours, without `model_type` and `architectures`.

        Args:
            model: our config, without `model_type` and the fields that choose an architecture.

        Raises:
            ValueError: naming a field of ours that their format cannot express.
        """
        same = [one.name for one in self.fields] + list(self.token_ids)
        translated = [name for translation in self.translations for name in translation.ours]
        missing = [name for name in (*same, *translated) if name not in model]
        if missing:
            raise ValueError(f"model.{missing[0]}: missing; the checkpoint's config is incomplete")
        own = {one.name: one.default for one in self.ours_only}
        unknown = sorted(set(model) - {*same, *translated, *own})
        if unknown:
            raise ValueError(
                f"model.{unknown[0]}: not known to this version's conversion of this family, got "
                f"{model[unknown[0]]!r}; use a newer mtron-ckpt"
            )
        for check in self.limits:
            check(model)
        written = [one for one in self.fields if one.is_written(model)]
        hf = {one.key: model[one.name] for one in written} | dict(self.only)
        hf |= {name: model[name] for name in self.token_ids}
        for translation in self.translations:
            hf |= translation.to_hf(model)
        extra = {
            name: model[name]
            for name, default in own.items()
            if model.get(name, default) != default
        }
        return dict(sorted(hf.items())) | ({OURS: extra} if extra else {})

    def _refuse(self, hf: Mapping[str, Any]) -> None:
        for name, what in (REFUSED | dict(self.refused)).items():
            if hf.get(name):
                raise ValueError(f"{name}: {what} cannot be converted, got {hf[name]!r}")
        for name, value in self.only.items():
            if hf.get(name, value) != value:
                raise ValueError(
                    f"{name}: only {value!r} can be honoured, got {hf[name]!r}; "
                    "this model cannot be converted"
                )

    def _read_ours_only(self, hf: Mapping[str, Any]) -> Config:
        names = ", ".join(one.name for one in self.ours_only) or "nothing"
        given = hf.get(OURS, {})
        if not isinstance(given, dict) or set(given) - {one.name for one in self.ours_only}:
            raise ValueError(f"{OURS}: may hold {names} only, got {given!r}")
        return {one.name: one.read(given, {}) for one in self.ours_only}

    def _known_keys(self) -> set[str]:
        """The keys of config.json that have a meaning here."""
        known = {key for one in self.fields for key in one.keys}
        known |= {key for translation in self.translations for key in translation.theirs}
        known |= {*self.token_ids, *self.only, *self.refused, *REFUSED, OURS}
        return known | NO_EFFECT | self.no_effect


def _token_id(name: str, value: Any, vocab_size: int, notes: list[str]) -> int | None:
    """The one id that the model config can hold, or None; `notes` tells where that loses some."""
    ids = value if isinstance(value, list) else [value]
    if any(isinstance(i, bool) or not isinstance(i, int | None) for i in ids):
        raise ValueError(f"{name}: must be a token id or null, got {value!r}")
    kept = next((i for i in ids if i is not None and 0 <= i < vocab_size), None)
    if ids not in ([kept], []):
        notes.append(f"config.json: {name} {value}: the model config keeps {kept}")
    return kept
