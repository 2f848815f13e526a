"""`verify`: every byte of a checkpoint against the checksums of its manifest and index."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from crc32c import crc32c
from isal.isal_zlib import crc32

from mtron_ckpt.errors import CorruptCheckpoint, Damage, IncompleteCheckpoint
from mtron_ckpt.index import INDEX_FILE, ArrayRecord, Piece
from mtron_ckpt.manifest import COMMIT_FILE, MANIFEST_FILE, FileRecord, Manifest
from mtron_ckpt.step_files import find_step, read_file, read_index, read_manifest
from mtron_ckpt.steps import step_directories
from mtron_ckpt.storage import read_at

_READ_BYTES = 16 << 20


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        path: what was verified.
        steps: directories of the steps that were read.
        num_bytes: bytes read.
        damages: every damaged place; empty if all is as it was saved.
    """

    path: Path
    steps: tuple[Path, ...]
    num_bytes: int
    damages: tuple[Damage, ...]

    @property
    def ok(self) -> bool:
        """Whether every byte is as it was saved."""
        return not self.damages

    def raise_if_damaged(self) -> None:
        """Raise `CorruptCheckpoint` with all damages, if there are any."""
        if self.damages:
            raise CorruptCheckpoint(*self.damages)


def verify(path: str | os.PathLike[str]) -> VerifyReport:
    """Read a whole checkpoint and compare every byte with its checksums.

    Args:
        path: the directory of a step, or a root, of which all committed steps are verified.

    Raises:
        FileNotFoundError: nothing is there.
        IncompleteCheckpoint: no committed step is there.
        ValueError: a step has a format version that this package does not read.
    """
    path = Path(path)
    find_step(path)  # raises where there is nothing
    steps = (path,) if (path / COMMIT_FILE).is_file() else tuple(step_directories(path).values())
    damages: list[Damage] = []
    num_bytes = 0
    for step in steps:
        found, size = _verify_step(step)
        damages += found
        num_bytes += size
    return VerifyReport(path, steps, num_bytes, tuple(damages))


def _verify_step(step: Path) -> tuple[list[Damage], int]:
    """Verify one step; return its damages and the bytes read."""
    try:
        manifest = read_manifest(step)
    except CorruptCheckpoint as error:
        return list(error.damages), 0
    except IncompleteCheckpoint:
        return [Damage(str(step / COMMIT_FILE), 0, 0, "missing, the step is not committed")], 0
    damages = [*_unlisted(step, manifest)]
    index: dict[str, ArrayRecord] = {}
    try:
        index = read_index(step, manifest)
    except CorruptCheckpoint as error:
        damages += error.damages
    for record in manifest.files:
        try:
            if record.path in manifest.data:
                damages += _verify_data(step, record, manifest.data.index(record.path), index)
            elif record.path != INDEX_FILE:
                read_file(step, record)
        except CorruptCheckpoint as error:
            damages += error.damages
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
            damages.append(Damage(str(step / record.path), 0, record.size, problem))
    return damages, sum(record.size for record in manifest.files)


def _unlisted(step: Path, manifest: Manifest) -> Iterator[Damage]:
    """Yield the files that no checksum covers."""
    listed = {COMMIT_FILE, MANIFEST_FILE, *(record.path for record in manifest.files)}
    for path in sorted(step.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        if path.relative_to(step).as_posix() not in listed:
            yield Damage(str(path), 0, path.lstat().st_size, "not listed in MANIFEST.json")


@dataclass(frozen=True)
class _Span:
    """A run of bytes in a data file: the values of a chunk, or what lies between two."""

    start: int
    stop: int
    checksum: int = 0
    piece: Piece | None = None
    number: int = 0


def _spans(size: int, file: int, index: dict[str, ArrayRecord]) -> Iterator[_Span]:
    """Divide a data file into the chunks of arrays and stretches between them, in file order."""
    chunks = [
        _Span(position, position + piece.chunk_bytes, checksum, piece, number)
        for array in index.values()
        for piece in array.parts
        for number, (chunk_file, position, checksum) in enumerate(piece.chunks)
        if chunk_file == file
    ]
    end = _Span(size, size)
    position = 0
    for chunk in [*sorted(chunks, key=lambda span: span.start), end]:
        for start in range(position, chunk.start, _READ_BYTES):
            yield _Span(start, min(start + _READ_BYTES, chunk.start))
        if chunk is not end:
            yield chunk
        position = chunk.stop


def _verify_data(
    step: Path, record: FileRecord, number: int, index: dict[str, ArrayRecord]
) -> Iterator[Damage]:
    """Yield the damages of a data file, each named by the array that it hits."""
    path = step / record.path
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise CorruptCheckpoint(Damage(str(path), 0, record.size, "missing")) from None
    named = False
    digest = 0
    try:
        size = os.fstat(file).st_size
        if size != record.size:
            problem = f"{size} bytes long instead of {record.size}"
            yield Damage(str(path), min(size, record.size), record.size, problem)
        buffer = np.empty(0, np.uint8)
        for span in _spans(record.size, number, index):
            length = span.stop - span.start
            if len(buffer) < length:
                buffer = np.empty(length, np.uint8)
            count = read_at(file, buffer[:length].data, span.start)
            content = buffer[:count].data
            digest = crc32(content, digest)
            if span.piece is None:
                continue
            if count < length or crc32c(content) != span.checksum:
                named = True
                problem = "fails its checksum" if count == length else "ends too early"
                yield span.piece.damage(str(path), span.number, problem)
    finally:
        os.close(file)
    if digest != record.crc32 and size == record.size and not named:
        problem = "fails its checksum outside the values of arrays (ZIP records, padding)"
        yield Damage(str(path), 0, record.size, problem)
