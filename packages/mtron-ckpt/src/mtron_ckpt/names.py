"""Names that become paths: none of them can leave the directory it belongs to."""

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

_SEGMENT = re.compile(r"[A-Za-z0-9_.-]+")
_MAX_BYTES = 255


def check_segment(name: str, what: str) -> None:
    """Refuse a name that is not one plain path segment.

    Raises:
        ValueError: the message begins with `what` and the name.
    """
    if (
        len(name) > _MAX_BYTES
        or not _SEGMENT.fullmatch(name)
        or set(name) == {"."}
        or name.startswith("__")
        or name == "zarr.json"
    ):
        raise ValueError(
            f"{what} {name!r}: not a usable name; use letters, digits, '_', '-' and '.' "
            f"(at most {_MAX_BYTES}, not only dots, not beginning with '__', not 'zarr.json')"
        )


def check_array_name(name: str) -> None:
    """Refuse an array name that is not `<kind>/<parameter name>`.

    Raises:
        ValueError: naming the array.
    """
    kind, _, parameter = name.partition("/")
    if "/" in parameter or not kind or not parameter:
        raise ValueError(
            f"array {name!r}: an array is called <kind>/<parameter name> with one '/', "
            "for example param/embed.weight"
        )
    check_segment(kind, f"array {name!r}: kind")
    check_segment(parameter, f"array {name!r}: parameter")


def plain_json(value: Any, path: str) -> Any:
    """Return `value` as JSON gives it back: tuples as lists, mappings as dictionaries.

    Raises:
        ValueError: JSON cannot hold it; the message names the place by its dotted path, which
            begins with `path`.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"{path}: JSON has no such number, got {value}; use null or a string")
        return value
    if isinstance(value, list | tuple):
        return [plain_json(item, f"{path}[{n}]") for n, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{path}: keys must be strings, got {key!r}; use str({key!r})")
        return {key: plain_json(item, f"{path}.{key}") for key, item in value.items()}
    raise ValueError(
        f"{path}: JSON cannot hold a {type(value).__name__}; use numbers, strings, lists and "
        "dictionaries, or store it as an array"
    )
