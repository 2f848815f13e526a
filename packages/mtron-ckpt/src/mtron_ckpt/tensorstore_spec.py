"""tensorstore.json: how tensorstore opens the arrays of a checkpoint."""

import json
from collections.abc import Sequence
from typing import Any

from mtron_ckpt.index import Written, WrittenPiece
from mtron_ckpt.local_arrays import ArrayForm
from mtron_ckpt.zarr_json import piece_key

Stored = tuple[str, WrittenPiece]
"""Path of a data file, and a piece in it."""


def tensorstore_document(forms: Sequence[ArrayForm], written: Sequence[Written]) -> bytes:
    """Return the content of tensorstore.json.

    Args:
        forms: the arrays of the checkpoint.
        written: what each writer has written of them.

    Returns:
        Where one data file holds all arrays whole, one spec for all of them: add `"path":
        "<array name>/"` to its `kvstore`. Else the spec of each array, `{"arrays": {name: spec}}`.
    """
    files = [one.file.path for one in written if one.file is not None]
    pieces: dict[str, list[Stored]] = {form.name: [] for form in forms}
    for one in written:
        for piece in one.pieces:
            assert one.file is not None
            pieces[piece.name].append((one.file.path, piece))
    if len(files) == 1 and all(pieces[form.name][0][1].shape == form.shape for form in forms):
        spec = {"driver": "zarr3", "kvstore": _archive(files[0])}
        return json.dumps(spec, separators=(",", ":")).encode()
    lines = [f"{json.dumps(form.name)}:{_array_spec(form, pieces[form.name])}" for form in forms]
    return ('{"arrays":{\n' + ",\n".join(lines) + "\n}}\n").encode()


def _archive(path: str) -> dict[str, Any]:
    return {"driver": "zip", "base": {"driver": "file", "path": path}}


def _array_spec(form: ArrayForm, pieces: list[Stored]) -> str:
    path, first = pieces[0]
    if first.shape == form.shape:
        spec = {"driver": "zarr3", "kvstore": _archive(path) | {"path": f"{form.name}/"}}
    else:
        spec = {
            "driver": "stack",
            "dtype": form.dtype,
            "schema": {"domain": {"shape": form.shape}},
            "layers": [_layer(path, piece) for path, piece in pieces],
        }
    return json.dumps(spec, separators=(",", ":"))


def _layer(path: str, piece: WrittenPiece) -> dict[str, Any]:
    """Return the spec of a piece, moved to its place in the array."""
    stop = [start + extent for start, extent in zip(piece.offset, piece.shape, strict=True)]
    output = [{"input_dimension": dim, "offset": -start} for dim, start in enumerate(piece.offset)]
    return {
        "driver": "zarr3",
        "kvstore": _archive(path) | {"path": f"{piece_key(piece.name, piece.offset)}/"},
        "transform": {
            "input_inclusive_min": piece.offset,
            "input_exclusive_max": stop,
            "output": output,
        },
    }
