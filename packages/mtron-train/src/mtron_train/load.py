"""From a TOML file and overrides to a validated `RunConfig`, or to all errors at once."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from mtron_models import ModelConfig, config_from_dict
from mtron_parallel import ParallelConfig
from mtron_train.config import RunConfig


class ConfigError(ValueError):
    """The configuration is wrong; the message lists every violation, one per line."""

    def __init__(self, source: str, violations: Sequence[str]) -> None:
        self.violations = tuple(violations)
        count = "1 error" if len(violations) == 1 else f"{len(violations)} errors"
        super().__init__("\n  ".join([f"{source}: {count} in the configuration", *violations]))


def load_config(path: str | Path, overrides: Sequence[str] = (), world_size: int = 1) -> RunConfig:
    """Read a run's configuration.

    Args:
        path: a TOML file.
        overrides: `section.field=value` each, the value in TOML syntax (what is not TOML is
            taken as a string); they replace what the file says before the one validation.
        world_size: processes that the run is for.

    Raises:
        ConfigError: the file is missing, is not TOML, or does not describe a legal run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"is not TOML: {error}"]) from None
    for override in overrides:
        _apply_override(data, override)
    return config_from_mapping(data, str(path), world_size)


def config_from_mapping(
    data: Mapping[str, Any], source: str = "configuration", world_size: int = 1
) -> RunConfig:
    """Validate nested dictionaries as a `RunConfig`.

    Args:
        data: sections with their fields.
        source: where they come from, for messages.
        world_size: processes that the run is for.

    Returns:
        The configuration with everything filled in that follows from the rest.

    Raises:
        ConfigError: with every violation, `source` named in front.
    """
    violations: list[str] = []
    model = _model_config(data.get("model"), violations)
    try:
        config = RunConfig.model_validate({**data, "model": model})
    except ValidationError as error:
        found = [e for e in error.errors(include_url=False) if e["loc"][0] != "model"]
        violations += [_describe(item, RunConfig) for item in found]
        raise ConfigError(source, violations) from None
    violations += check(config, world_size)
    if violations:
        raise ConfigError(source, violations)
    resolved = {
        "schedule": config.schedule.resolve(config.run.steps),
        "parallel": config.parallel.resolve(world_size),
    }
    return config.model_copy(update=resolved)


def check(config: RunConfig, world_size: int = 1) -> list[str]:
    """Return every violation that involves more than one field, with its remedy."""
    data = config.data
    found = config.parallel.check(world_size, config.model)
    if not config.parallel.check(world_size):
        parallel = config.parallel.resolve(world_size)
        found += _batch_violations(data.global_batch_size, data.micro_batch_size, parallel.dp)
        found += _optimizer_violations(config.optim.kind, parallel)
    longest = getattr(config.model, "max_position_embeddings", None)
    if longest is not None and data.seq_len > longest:
        found.append(
            f"data.seq_len: {data.seq_len} is more than model.max_position_embeddings = {longest};"
            f" use at most {longest}, or raise that"
        )
    if config.schedule.total_steps is None:
        try:
            config.schedule.resolve(config.run.steps)
        except ValidationError as error:
            problems = [item["msg"].removeprefix("Value error, ") for item in error.errors()]
            found += [f"schedule.{problem}" for problem in problems]
    return found


def _batch_violations(whole: int, micro: int | None, dp: int) -> list[str]:
    """Check that every data-parallel rank gets equally many micro-batches."""
    if whole % dp:
        nearest = [n for n in (whole // dp * dp, (whole // dp + 1) * dp) if n]
        return [
            f"data.global_batch_size: {whole} samples cannot be shared by {dp} data-parallel "
            f"ranks; use {_join(nearest)}, or {_join(_divisors(whole))} such ranks"
        ]
    if micro is not None and whole // dp % micro:
        share = f"data.global_batch_size = {whole}"
        if dp > 1:
            share += f" / {dp} data-parallel ranks = {whole // dp}"
        return [
            f"data.micro_batch_size: {micro} does not divide {share}; "
            f"use {_join(_divisors(whole // dp))}"
        ]
    return []


def _optimizer_violations(kind: str, parallel: ParallelConfig) -> list[str]:
    """Check that the optimizer can update parts of matrices where a rank holds only parts."""
    divided = {"parallel.tp": parallel.tp > 1, "parallel.zero": parallel.zero and parallel.dp > 1}
    causes = [name for name, holds in divided.items() if holds]
    if kind != "muon" or not causes:
        return []
    return [
        f'optim.kind: "muon" needs whole matrices, but {" and ".join(causes)} divide them; use '
        '"adamw", or parallel.tp = 1 with parallel.zero = 0'
    ]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _model_config(section: Any, violations: list[str]) -> ModelConfig | None:
    """Validate the model section by its family; on errors append them and return None."""
    if section is None:
        violations.append(
            "model: the section is missing; add [model] with model_type and its fields"
        )
        return None
    if not isinstance(section, Mapping):
        violations.append(f"model: must be a section, got {section!r}; write [model]")
        return None
    try:
        return config_from_dict(dict(section))
    except ValidationError as error:
        violations += [
            _describe({**item, "loc": ("model", *item["loc"])}, None)
            for item in error.errors(include_url=False)
        ]
    except ValueError as error:
        violations += [f"model.{line}" for line in str(error).splitlines()]
    return None


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            override, ["is no override; write section.field=value, for example optim.lr=3e-4"]
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    for depth, part in enumerate(parts[:-1]):
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise ConfigError(override, [f"{'.'.join(parts[: depth + 1])} is no section"])
    data[parts[-1]] = value


def _describe(item: Mapping[str, Any], root: type[BaseModel] | None) -> str:
    """Render one of pydantic's errors as `dotted.path: what is wrong, got value; remedy`."""
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{path}: there is no such key{_suggestion(item['loc'], root)}"
    if item["type"] == "missing":
        return f"{path}: is missing; every run needs it"
    message = item["msg"].removeprefix("Value error, ")
    got = item["input"]
    shown = "" if isinstance(got, Mapping | BaseModel) else f", got {_toml(got)}"
    return f"{path}: {message[0].lower()}{message[1:]}{shown}"


def _suggestion(loc: tuple[Any, ...], root: type[BaseModel] | None) -> str:
    """Say which keys there are where an unknown one was found, the nearest first."""
    section: Any = root
    for part in loc[:-1]:
        field = section.model_fields.get(part) if section is not None else None
        section = field.annotation if field is not None else None
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return ""
    if section is None:
        return ""
    names = list(section.model_fields)
    near = difflib.get_close_matches(str(loc[-1]), names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; use one of {', '.join(names)}"


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _join(values: Sequence[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    return f"{', '.join(map(str, values[:-1]))} or {values[-1]}"
