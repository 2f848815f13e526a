"""The documents that describe a checkpoint as a whole: MANIFEST.json and COMMIT."""

import json
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from isal.isal_zlib import crc32
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mtron_ckpt.names import check_segment

FORMAT = "mtron-checkpoint"
VERSION = 1
MANIFEST_FILE = "MANIFEST.json"
COMMIT_FILE = "COMMIT"
TENSORSTORE_FILE = "tensorstore.json"
STATE_DIRECTORY = "state"
ASSETS_DIRECTORY = "assets"
DATA_DIRECTORY = "data"
WRITER_FILE = "data/writer-{writer:04d}-{number:03d}.zip"
"""Each writer has files of its own."""


def _inside(path: str) -> str:
    for part in path.split("/"):
        check_segment(part, "file")
    return path


class Document(BaseModel):
    """A JSON document that is read back as strictly as it was written."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class FileRecord(Document):
    """A file of the checkpoint."""

    path: Annotated[str, AfterValidator(_inside)]
    """Relative to the checkpoint's directory, with '/'."""
    size: int = Field(ge=0)
    """Length in bytes."""
    crc32: int = Field(ge=0, lt=2**32)
    """CRC-32, as zlib and ZIP have it, of the whole file."""


class Manifest(Document):
    """MANIFEST.json: what the checkpoint is, and every other file in it except COMMIT."""

    format: Literal["mtron-checkpoint"]
    """Says what this is."""
    version: Literal[1]
    """Of the format."""
    container: Literal["packed"]
    """How the arrays are stored."""
    producer: dict[str, str]
    """Name and version of the software that wrote it."""
    step: int = Field(ge=0)
    """Optimizer steps done."""
    config: dict[str, Any]
    """The run's configuration."""
    layout: dict[str, Any]
    """How the saving run was laid out over processes."""
    data: tuple[str, ...]
    """The data files; chunks of the index refer to them by position here."""
    files: tuple[FileRecord, ...]
    """Every file except MANIFEST.json and COMMIT."""

    def record(self, path: str) -> FileRecord | None:
        """Return the record of a file, or None."""
        return next((record for record in self.files if record.path == path), None)

    def names_in(self, directory: str) -> list[str]:
        """Return the names of the files in a subdirectory."""
        paths = [PurePosixPath(record.path) for record in self.files]
        return [path.name for path in paths if str(path.parent) == directory]


def describe(path: str, content: bytes) -> FileRecord:
    """Return the record of a file with this content."""
    return FileRecord(path=path, size=len(content), crc32=crc32(content))


def dump_manifest(manifest: Manifest) -> bytes:
    """Return MANIFEST.json."""
    return json.dumps(manifest.model_dump(), indent=1, allow_nan=False).encode() + b"\n"


def dump_commit(manifest: bytes) -> bytes:
    """Return COMMIT, which is determined by the bytes of MANIFEST.json."""
    return f"{FORMAT} {VERSION}\n{len(manifest)} {crc32(manifest)}\n".encode()
