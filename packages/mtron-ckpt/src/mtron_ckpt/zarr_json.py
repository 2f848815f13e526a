"""The zarr v3 metadata documents of a checkpoint."""

import json
from functools import lru_cache
from typing import Any

from mtron_ckpt.boxes import Shape
from mtron_ckpt.dtypes import fill_value

CHECKSUM_BYTES = 4
"""What the crc32c codec appends to a chunk."""


def root_document() -> bytes:
    """Return the `zarr.json` of the root group."""
    return _group({"mtron_checkpoint": 1})


def kind_document(kind: str) -> bytes:
    """Return the `zarr.json` of the group of the arrays of one kind."""
    return _group({"kind": kind})


def pieces_document(dtype: str, shape: Shape) -> bytes:
    """Return the `zarr.json` of the group that holds the pieces of an array."""
    return _group({"data_type": dtype, "shape": list(shape)})


def _group(attributes: dict[str, Any]) -> bytes:
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


def piece_key(array: str, offset: Shape) -> str:
    """Return the zarr key of a piece of an array."""
    return f"{array}/{'-'.join(map(str, offset))}"


def chunk_key(array: str, index: Shape) -> str:
    """Return the zarr key of a chunk."""
    return "/".join([array, "c", *map(str, index)])


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
