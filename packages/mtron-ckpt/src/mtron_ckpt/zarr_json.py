"""The zarr v3 metadata documents of a checkpoint, and the tensorstore spec that opens it."""

import json
from functools import lru_cache
from typing import Any

from mtron_ckpt.boxes import Shape
from mtron_ckpt.dtypes import fill_value

CHECKSUM_BYTES = 4
"""What the crc32c codec appends to a chunk."""


def group_document(kind: str | None) -> bytes:
    """Return the `zarr.json` of a group: of the root (None), or of the arrays of one kind."""
    attributes = {"mtron_checkpoint": 1} if kind is None else {"kind": kind}
    return _dump({"zarr_format": 3, "node_type": "group", "attributes": attributes})


@lru_cache(maxsize=1024)  # a model repeats few shapes many times
def array_document(dtype: str, shape: Shape, chunk_shape: Shape) -> bytes:
    """Return the `zarr.json` of an array: uncompressed, little-endian, with checksums."""
    return _dump(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk_shape)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill_value(dtype),
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
            "attributes": {},
        }
    )


def chunk_key(array: str, index: Shape) -> str:
    """Return the zarr key of a chunk."""
    return "/".join([array, "c", *map(str, index)])


def tensorstore_document(data_file: str) -> bytes:
    """Return the spec by which tensorstore opens the arrays of a checkpoint of one writer.

    Add `"path": "<array name>/"` to its `kvstore`; the path of the data file is relative to
    the checkpoint's directory.
    """
    base = {"driver": "file", "path": data_file}
    return _dump({"driver": "zarr3", "kvstore": {"driver": "zip", "base": base}})


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
