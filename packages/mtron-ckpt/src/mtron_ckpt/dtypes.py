"""Element types: numpy dtypes and their names in zarr v3 (and in tensorstore)."""

from typing import Any

import ml_dtypes
import numpy as np

_NUMPY = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
]

ML_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    )
}
"""Types that numpy and zarr-python lack, by their zarr v3 names."""

DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(name) for name in _NUMPY} | ML_DTYPES
"""Every type that a checkpoint can hold, by its zarr v3 name."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: np.dtype[Any], array: str) -> str:
    """Return the zarr v3 name of `dtype`.

    Raises:
        ValueError: checkpoints cannot hold this type; the message names `array`.
    """
    native = dtype if dtype in _NAMES else dtype.newbyteorder("=")
    if native not in _NAMES:
        raise ValueError(
            f"{array}: a checkpoint cannot hold elements of this type, got {dtype}; "
            f"use one of {', '.join(DTYPES)}"
        )
    return _NAMES[native]


def stored_dtype(name: str) -> np.dtype[Any]:
    """Return the little-endian dtype in which elements called `name` are stored."""
    dtype = DTYPES[name]
    return dtype if name in ML_DTYPES else dtype.newbyteorder("<")


def fill_value(name: str) -> bool | int | float | list[float]:
    """Return the JSON form of the fill value that zarr requires; it is never read."""
    if name == "bool":
        return False
    if name.startswith("complex"):
        return [0.0, 0.0]
    if name == "float8_e8m0fnu":  # has no zero
        return 1.0
    return 0.0 if "float" in name else 0
