"""Reads the documents of a committed step, checked against the chain that ends in COMMIT."""

import json
from itertools import pairwise
from math import prod
from pathlib import Path

from isal.isal_zlib import crc32
from pydantic import ValidationError

from mtron_ckpt.boxes import chunk_grid, find_gap
from mtron_ckpt.dtypes import DTYPES
from mtron_ckpt.errors import CorruptCheckpoint, Damage, IncompleteCheckpoint
from mtron_ckpt.index import INDEX_FILE, ArrayRecord, Index
from mtron_ckpt.manifest import (
    COMMIT_FILE,
    FORMAT,
    MANIFEST_FILE,
    VERSION,
    FileRecord,
    Manifest,
    dump_commit,
)
from mtron_ckpt.names import check_array_name
from mtron_ckpt.steps import committed_steps, step_of


def find_step(path: Path) -> Path:
    """Return the step directory that `path` means: itself, or the newest committed one in it.

    Raises:
        FileNotFoundError: nothing is there.
        IncompleteCheckpoint: no committed step is there.
    """
    if not path.exists():
        raise FileNotFoundError(2, f"{path}: no such checkpoint; check the path")
    if (path / COMMIT_FILE).is_file():
        return path
    steps = committed_steps(path)
    if steps:
        return steps[max(steps)]
    if step_of(path) is not None or (path / MANIFEST_FILE).exists():
        raise IncompleteCheckpoint(
            f"{path}: this step is not committed, its COMMIT file is missing; "
            "copy it again or use another step"
        )
    raise IncompleteCheckpoint(
        f"{path}: not a checkpoint; give a directory that holds step-* directories, or one of these"
    )


def read_manifest(directory: Path) -> Manifest:
    """Read and check COMMIT and MANIFEST.json.

    Raises:
        IncompleteCheckpoint: the directory has no COMMIT.
        CorruptCheckpoint: the files are damaged or do not belong together.
        ValueError: the checkpoint has another format version.
    """
    try:
        commit = (directory / COMMIT_FILE).read_bytes()
    except FileNotFoundError:
        raise IncompleteCheckpoint(f"{directory}: not committed, COMMIT is missing") from None
    path = directory / MANIFEST_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CorruptCheckpoint(Damage(str(path), 0, 0, "missing")) from None
    if commit != dump_commit(content):
        _check_version(directory, commit, content)
        problem = "does not match COMMIT (one of the two is damaged or from another checkpoint)"
        raise CorruptCheckpoint(Damage(str(path), 0, len(content), problem))
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise _malformed(directory / MANIFEST_FILE, content, error) from None
    named = step_of(directory)
    if named is not None and named != manifest.step:
        problem = f"this is step {manifest.step}, the directory's name says {named}"
        raise CorruptCheckpoint(Damage(str(directory / MANIFEST_FILE), 0, len(content), problem))
    return manifest


def _check_version(directory: Path, commit: bytes, manifest: bytes) -> None:
    """Raise if both COMMIT and MANIFEST.json say that they are of another version."""
    try:
        version = json.loads(manifest)["version"]
    except (ValueError, KeyError, TypeError):
        return
    if version != VERSION and commit.startswith(f"{FORMAT} {version}\n".encode()):
        raise ValueError(
            f"{directory}: the checkpoint has format version {version}, this mtron-ckpt reads "
            f"version {VERSION}; use a version of mtron-ckpt that reads it"
        )


def read_file(directory: Path, record: FileRecord) -> bytes:
    """Read a file that the manifest lists.

    Raises:
        CorruptCheckpoint: it is missing or has other bytes than were saved.
    """
    path = directory / record.path
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise CorruptCheckpoint(Damage(str(path), 0, record.size, "missing")) from None
    if len(content) != record.size:
        problem = f"{len(content)} bytes long instead of {record.size}"
        raise CorruptCheckpoint(Damage(str(path), 0, record.size, problem))
    if crc32(content) != record.crc32:
        raise CorruptCheckpoint(Damage(str(path), 0, record.size, "fails its checksum"))
    return content


def read_index(directory: Path, manifest: Manifest) -> dict[str, ArrayRecord]:
    """Read and check the index.

    Raises:
        CorruptCheckpoint: it is damaged, or says what cannot be.
    """
    path = directory / INDEX_FILE
    record = manifest.record(INDEX_FILE)
    if record is None:
        raise CorruptCheckpoint(Damage(str(path), 0, 0, "not listed in MANIFEST.json"))
    content = read_file(directory, record)
    try:
        index = Index.model_validate_json(content)
        sizes = [_size(manifest, name) for name in manifest.data]
        for array in index.arrays:
            _check_array(array, sizes)
        _check_apart(index)
    except ValueError as error:  # pydantic's is one
        raise _malformed(path, content, error) from None
    return {array.name: array for array in index.arrays}


def _size(manifest: Manifest, name: str) -> int:
    record = manifest.record(name)
    if record is None:
        raise ValueError(f"{name} is a data file but not listed among the files")
    return record.size


def _check_array(array: ArrayRecord, sizes: list[int]) -> None:
    check_array_name(array.name)
    if array.dtype not in DTYPES:
        raise ValueError(f"{array.name}: unknown element type {array.dtype}")
    if problem := find_gap(array.shape, [piece.box for piece in array.parts]):
        raise ValueError(f"{array.name}: {problem}")
    for piece in array.parts:
        if len(piece.chunk_shape) != len(array.shape):
            raise ValueError(f"{array.name}: chunks of another rank")
        if len(piece.chunks) != prod(chunk_grid(piece.box.shape, piece.chunk_shape)):
            raise ValueError(f"{array.name}: {len(piece.chunks)} chunks do not make up its shape")
        size = piece.chunk_bytes
        for file, position, _ in piece.chunks:
            if file >= len(sizes) or position + size > sizes[file]:
                raise ValueError(f"{array.name}: a chunk lies outside the data files")


def _check_apart(index: Index) -> None:
    if len({array.name for array in index.arrays}) < len(index.arrays):
        raise ValueError("two arrays have one name")
    spans = sorted(
        (file, position, position + piece.chunk_bytes)
        for array in index.arrays
        for piece in array.parts
        for file, position, _ in piece.chunks
    )
    for (file, _, stop), (next_file, start, _) in pairwise(spans):
        if file == next_file and start < stop:
            raise ValueError(f"two chunks share bytes from {start} of data file {file}")


def _malformed(path: Path, content: bytes, error: ValueError) -> CorruptCheckpoint:
    problem = f"malformed: {' '.join(str(error).split())}"
    return CorruptCheckpoint(Damage(str(path), 0, len(content), problem))
