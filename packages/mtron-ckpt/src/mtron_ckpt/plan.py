"""Everything about a save that is known before the first byte is written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtron_ckpt.arrays import Arrays, Metadata
from mtron_ckpt.layout import Blocks, FilePlan, plan_array, plan_file
from mtron_ckpt.manifest import ASSETS_DIRECTORY, STATE_DIRECTORY, TENSORSTORE_FILE, WRITER_FILE
from mtron_ckpt.names import check_segment, plain_json
from mtron_ckpt.zarr_json import tensorstore_document

_RECORD_BYTES = 256
_CHUNK_RECORD_BYTES = 40


@dataclass(frozen=True)
class SavePlan:
    """A checked save.

    Attributes:
        root: where the step's directory will be.
        step: optimizer steps done.
        replace: whether a directory of this step may be replaced.
        config: the run's configuration as plain JSON.
        layout: layout of the saving run as plain JSON.
        files: content of every file that is neither array data nor describes the checkpoint.
        data_name: path of the data file in the step's directory.
        data: the data file.
        blocks: where the values of each array come from; emptied when they have been staged.
    """

    root: Path
    step: int
    replace: bool
    config: dict[str, Any]
    layout: dict[str, Any]
    files: dict[str, bytes]
    data_name: str
    data: FilePlan
    blocks: dict[str, Blocks]

    @property
    def needed_bytes(self) -> int:
        """Disk space that the step will take, a little more than less."""
        records = sum(_RECORD_BYTES + len(m.name) + _CHUNK_RECORD_BYTES for m in self.data.members)
        config = len(json.dumps([self.config, self.layout], indent=1))
        return self.data.size + sum(map(len, self.files.values())) + records + config


def plan_save(root: Path, arrays: Arrays, metadata: Metadata, replace: bool) -> SavePlan:
    """Check everything that a caller wants saved and decide where each byte goes.

    Raises:
        ValueError: naming the array, the file or the key that cannot be saved.
    """
    if isinstance(metadata.step, bool) or not isinstance(metadata.step, int) or metadata.step < 0:
        raise ValueError(
            f"metadata.step: must be a whole number from 0 on, got {metadata.step!r}; "
            "count optimizer steps"
        )
    data_name = WRITER_FILE.format(writer=0, number=0)
    planned = [plan_array(name, value) for name, value in arrays.items()]
    return SavePlan(
        root=root,
        step=metadata.step,
        replace=replace,
        config=_plain_dict(metadata.config, "metadata.config"),
        layout=_plain_dict(metadata.layout, "metadata.layout"),
        files={TENSORSTORE_FILE: tensorstore_document(data_name), **_small_files(metadata)},
        data_name=data_name,
        data=plan_file(tuple(array for array, _ in planned)),
        blocks={array.name: blocks for array, blocks in planned},
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
