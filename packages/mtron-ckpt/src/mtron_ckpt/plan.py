"""Everything about a save that is known before the first byte is written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtron_ckpt.arrays import Arrays, Metadata
from mtron_ckpt.boxes import whole_box
from mtron_ckpt.layout import FilePlan, plan_file, plan_piece
from mtron_ckpt.local_arrays import ArrayForm, Blocks, HeldArray, check_complete
from mtron_ckpt.manifest import ASSETS_DIRECTORY, STATE_DIRECTORY, WRITER_FILE
from mtron_ckpt.names import check_segment, plain_json
from mtron_ckpt.shared_plan import SharedPlan
from mtron_ckpt.writers import Writers

_RECORD_BYTES = 256
_CHUNK_RECORD_BYTES = 40


@dataclass(frozen=True)
class Request:
    """A save as it was asked for."""

    root: Path
    arrays: Arrays
    metadata: Metadata
    replace: bool


@dataclass(frozen=True)
class SavePlan:
    """A checked save, as far as this process carries it out.

    Attributes:
        root: where the step's directory will be.
        step: optimizer steps done.
        replace: whether a directory of this step may be replaced.
        config: the run's configuration as plain JSON.
        layout: layout of the saving run as plain JSON.
        files: content of every file that is neither array data nor describes the checkpoint.
        forms: all arrays of the checkpoint.
        data_name: path of this writer's data file in the step's directory.
        data: that data file; None if this writer has nothing to write.
        blocks: where the values of each array come from; emptied when they have been staged.
        needed_bytes: disk space that the step will take, a little more than less.
    """

    root: Path
    step: int
    replace: bool
    config: dict[str, Any]
    layout: dict[str, Any]
    files: dict[str, bytes]
    forms: tuple[ArrayForm, ...]
    data_name: str
    data: FilePlan | None
    blocks: dict[str, Blocks]
    needed_bytes: int


def plan_save(request: Request) -> SavePlan:
    """Check everything that a sole writer wants saved and decide where each byte goes.

    Raises:
        ValueError: naming the array, the file or the key that cannot be saved.
    """
    held = check_complete(request.arrays)
    data = plan_file(tuple(plan_piece(a.form, whole_box(a.form.shape)) for a in held.values()))
    forms = tuple(array.form for array in held.values())
    return _plan(request, held, forms, 0, data, data.size)


def plan_part(
    request: Request, held: Mapping[str, HeldArray], shared: SharedPlan, writers: Writers
) -> SavePlan:
    """Plan what one of several writers does.

    Args:
        request: what it wants saved.
        held: its arrays, checked.
        shared: who writes what.
        writers: this writer among the others; only writer 0's metadata is saved.

    Raises:
        ValueError: naming the file or the key that cannot be saved.
    """
    pieces = shared.pieces_of(writers.rank, held)
    data = plan_file(pieces) if pieces else None
    written = {piece.array.name for piece in pieces}
    mine = {name: array for name, array in held.items() if name in written}
    if not writers.coordinates:
        request = replace(request, metadata=Metadata(step=request.metadata.step))
    return _plan(request, mine, shared.forms, writers.rank, data, shared.total_bytes)


def check_step(step: int) -> None:
    """Refuse what is no number of steps.

    Raises:
        ValueError: saying so.
    """
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(
            f"metadata.step: must be a whole number from 0 on, got {step!r}; count optimizer steps"
        )


def _plan(
    request: Request,
    held: Mapping[str, HeldArray],
    forms: tuple[ArrayForm, ...],
    writer: int,
    data: FilePlan | None,
    data_bytes: int,
) -> SavePlan:
    metadata = request.metadata
    config = _plain_dict(metadata.config, "metadata.config")
    layout = _plain_dict(metadata.layout, "metadata.layout")
    files = _small_files(metadata)
    keys = [member.name for member in data.members] if data else []
    records = sum(_RECORD_BYTES + len(key) + _CHUNK_RECORD_BYTES for key in keys)
    documents = len(json.dumps([config, layout], indent=1)) + sum(map(len, files.values()))
    return SavePlan(
        root=request.root,
        step=metadata.step,
        replace=request.replace,
        config=config,
        layout=layout,
        files=files,
        forms=forms,
        data_name=WRITER_FILE.format(writer=writer, number=0),
        data=data,
        blocks={name: array.blocks for name, array in held.items()},
        needed_bytes=data_bytes + documents + records,
    )


def _plain_dict(value: Mapping[str, Any], path: str) -> dict[str, Any]:
    plain = plain_json(value, path)
    if not isinstance(plain, dict):
        raise ValueError(f"{path}: must be a dictionary, got {type(value).__name__}")
    return plain


def _small_files(metadata: Metadata) -> dict[str, bytes]:
    """Return state and assets as files."""
    files: dict[str, bytes] = {}
    for name, value in metadata.state.items():
        check_segment(f"{name}.json", "metadata.state")
        plain = plain_json(value, f"metadata.state.{name}")
        files[f"{STATE_DIRECTORY}/{name}.json"] = json.dumps(plain, allow_nan=False).encode()
    for name, content in metadata.assets.items():
        check_segment(name, "metadata.assets")
        if not isinstance(content, bytes | bytearray | memoryview):
            raise ValueError(
                f"metadata.assets.{name}: must be the file's bytes, got {type(content).__name__}"
            )
        files[f"{ASSETS_DIRECTORY}/{name}"] = bytes(content)
    return files
