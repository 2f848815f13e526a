"""Safetensors files one tensor at a time: memory is bounded by the largest tensor.

The library validates every file's header (no overlaps, no holes, nothing outside the file); the
bytes are then read and written here, because the library's numpy side holds all tensors of a file
at once when writing and knows no FP8 when reading.
"""

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mtron_ckpt.arrays import ArrayInfo

_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH = struct.Struct("<Q")


class SafetensorsReader:
    """One file, open for reading single tensors.

    Raises:
        ValueError: if the file is not a valid safetensors file or uses an unknown dtype.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="np"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{path}: not a valid safetensors file, got {error}; download or export it again"
            ) from error
        self._file = path.open("rb", buffering=0)
        (length,) = _LENGTH.unpack(self._file.read(_LENGTH.size))
        header = json.loads(self._file.read(length))
        header.pop("__metadata__", None)
        self._start = _LENGTH.size + length
        self._positions = {name: entry["data_offsets"][0] for name, entry in header.items()}
        self.tensors = {name: self._info(name, entry) for name, entry in header.items()}

    def _info(self, name: str, entry: Mapping[str, Any]) -> ArrayInfo:
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            self.close()
            raise ValueError(
                f"{self.path}: {name}: dtype {entry['dtype']} cannot be converted; "
                f"supported: {', '.join(_DTYPES)}"
            )
        return ArrayInfo(dtype, tuple(entry["shape"]))

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor into memory of its own.

        Raises:
            OSError: if the file has become shorter since it was opened.
        """
        info = self.tensors[name]
        data = np.empty(info.size_bytes, dtype=np.uint8)
        self._file.seek(self._start + self._positions[name])
        view, done = data.data, 0
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                raise OSError(f"{self.path}: {name}: the file ended early; was it replaced?")
            done += count
        return data.view(info.dtype).reshape(info.shape)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def write_safetensors(
    path: Path,
    tensors: Mapping[str, ArrayInfo],
    data: Iterable[tuple[str, np.ndarray]],
) -> None:
    """Writes one file, with its tensors arriving one by one in the order of `tensors`.

    Args:
        path: the file, which must not exist.
        tensors: what will come.
        data: name and array, little-endian and of the announced dtype and shape.

    Raises:
        ValueError: if a dtype has no safetensors name.
        OSError: if it cannot be written.
    """
    with path.open("xb") as file:
        file.write(_header(tensors))
        expected: Iterator[str] = iter(tensors)
        for name, array in data:
            assert name == next(expected), f"{name} came out of order"
            assert (array.dtype, array.shape) == (tensors[name].dtype, tensors[name].shape)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        assert next(expected, None) is None, "a tensor was announced and did not come"
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: Mapping[str, ArrayInfo]) -> bytes:
    # transformers refuses files that do not say which framework's conventions they follow.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, info in tensors.items():
        if info.dtype not in _NAMES:
            raise ValueError(
                f"{name}: dtype {info.dtype} has no safetensors form; "
                f"supported: {', '.join(map(str, _NAMES))}"
            )
        end = position + info.size_bytes
        header[name] = {
            "dtype": _NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text
