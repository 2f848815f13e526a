"""`open`: a committed step, any block of any of its arrays, every byte checked."""

import json
import os
import threading
import weakref
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c

from mtron_ckpt.arrays import ArrayInfo
from mtron_ckpt.boxes import Box, Shape, intersect
from mtron_ckpt.dtypes import DTYPES, stored_dtype
from mtron_ckpt.errors import CorruptCheckpoint
from mtron_ckpt.index import ArrayRecord, Piece
from mtron_ckpt.manifest import ASSETS_DIRECTORY, STATE_DIRECTORY
from mtron_ckpt.step_files import find_step, read_file, read_index, read_manifest
from mtron_ckpt.storage import read_at

Block = tuple[slice, ...]


class DataFiles:
    """The data files of a step, opened when first needed and closed with this object."""

    def __init__(self, directory: Path, names: tuple[str, ...]) -> None:
        self.paths = [directory / name for name in names]
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._open)

    def descriptor(self, number: int) -> int:
        """Return the open file.

        Raises:
            FileNotFoundError: it is missing.
        """
        with self._lock:
            if number not in self._open:
                self._open[number] = os.open(self.paths[number], os.O_RDONLY)
            return self._open[number]


def _close_all(files: dict[int, int]) -> None:
    for file in files.values():
        os.close(file)
    files.clear()


class Checkpoint:
    """A committed step.

    Several threads may read from one object at the same time. Its data files stay open as long
    as it lives, so it can be read to the end even if retention deletes the step meanwhile and
    a first read has happened.

    Attributes:
        path: the step's directory.
        step: optimizer steps done.
        config: the run's configuration.
        layout: how the saving run was laid out over processes.
        state: the JSON values by name.
        assets: the files that travel with the checkpoint, by name.
    """

    def __init__(self, path: Path) -> None:
        manifest = read_manifest(path)
        self.path = path
        self.step = manifest.step
        self.config: dict[str, Any] = manifest.config
        self.layout: dict[str, Any] = manifest.layout
        self.state: dict[str, Any] = {}
        self.assets: dict[str, bytes] = {}
        for record in manifest.files:
            directory, _, name = record.path.rpartition("/")
            if directory == STATE_DIRECTORY:
                self.state[name.removesuffix(".json")] = json.loads(read_file(path, record))
            elif directory == ASSETS_DIRECTORY:
                self.assets[name] = read_file(path, record)
        self._arrays = read_index(path, manifest)
        self._files = DataFiles(path, manifest.data)

    def names(self, kind: str | None = None) -> list[str]:
        """Return the names of the arrays, of one kind or of all, in the order of saving."""
        return [n for n in self._arrays if kind is None or n.startswith(f"{kind}/")]

    def info(self, name: str) -> ArrayInfo:
        """Return element type and global shape of an array.

        Raises:
            ValueError: there is no such array.
        """
        array = self.record(name)
        return ArrayInfo(DTYPES[array.dtype], tuple(array.shape))

    def read(self, name: str, block: Block | None = None) -> np.ndarray:
        """Read a block of an array; only the chunks that it touches are read, and checked.

        Args:
            name: `<kind>/<parameter name>`.
            block: a slice with step 1 per dim; dims left out at the end are read whole.

        Returns:
            A new array, exactly as saved.

        Raises:
            ValueError: there is no such array or block.
            CorruptCheckpoint: the stored bytes are not the ones that were saved.
        """
        array = self.record(name)
        box = _box(name, block or (), array.shape)
        dtype = stored_dtype(array.dtype)
        result = np.empty(box.shape, dtype)
        scratch: np.ndarray | None = None
        for piece in array.parts:
            for number, chunk in piece.chunks_touching(box):
                if chunk.shape == piece.chunk_shape and _contains(box, chunk):
                    place = result[(*chunk.within(box), ...)]
                    if place.flags.c_contiguous:
                        self._fill(piece, number, place.reshape(-1).view(np.uint8))
                        continue
                if scratch is None or len(scratch) != piece.chunk_bytes:
                    scratch = np.empty(piece.chunk_bytes, np.uint8)
                self._fill(piece, number, scratch)
                _copy_shared(scratch.view(dtype).reshape(piece.chunk_shape), chunk, result, box)
        return result

    def record(self, name: str) -> ArrayRecord:
        """Return what the index says about an array.

        Raises:
            ValueError: there is no such array.
        """
        if name not in self._arrays:
            near = get_close_matches(name, self._arrays, n=1) or list(self._arrays)[:1]
            hint = f"; did you mean {near[0]}?" if near else "; the checkpoint holds no arrays"
            raise ValueError(f"{self.path}: no array is called {name!r}{hint}")
        return self._arrays[name]

    def _fill(self, piece: Piece, number: int, target: np.ndarray) -> None:
        """Read a chunk into `target` (bytes) and check it."""
        file, position, checksum = piece.chunks[number]
        try:
            count = read_at(self._files.descriptor(file), target.data, position)
        except FileNotFoundError:
            problem = "missing"
        else:
            if count == len(target) and crc32c(target.data) == checksum:
                return
            problem = "fails its checksum" if count == len(target) else "ends too early"
        raise CorruptCheckpoint(piece.damage(str(self._files.paths[file]), number, problem))


def open(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint.

    Args:
        path: the directory of a step, or a root, of which the newest committed step is opened.

    Raises:
        FileNotFoundError: nothing is there.
        IncompleteCheckpoint: no committed step is there.
        CorruptCheckpoint: the step is damaged; an older one is not opened in its place.
        ValueError: the step has a format version that this package does not read.
    """
    return Checkpoint(find_step(Path(path)))


def _box(name: str, block: Block, shape: Shape) -> Box:
    """Return the rectangle that `block` means in an array of this shape."""
    if len(block) > len(shape):
        raise ValueError(f"{name}: the block has {len(block)} dims, the array {len(shape)}")
    offset, extent = list((0,) * len(shape)), list(shape)
    for dim, part in enumerate(block):
        start = 0 if part.start is None else part.start
        stop = shape[dim] if part.stop is None else part.stop
        if part.step not in (None, 1) or not 0 <= start <= stop <= shape[dim]:
            raise ValueError(
                f"{name}: the block must be slices with step 1 within shape {tuple(shape)}, "
                f"got {part} for dim {dim}"
            )
        offset[dim], extent[dim] = start, stop - start
    return Box(tuple(offset), tuple(extent))


def _contains(outer: Box, inner: Box) -> bool:
    return all(
        o <= i and j <= p
        for o, i, j, p in zip(outer.offset, inner.offset, inner.stop, outer.stop, strict=True)
    )


def _copy_shared(values: np.ndarray, chunk: Box, result: np.ndarray, box: Box) -> None:
    """Copy what a chunk and the wanted box share."""
    shared = intersect(chunk, box)
    assert shared is not None
    result[shared.within(box)] = values[shared.within(chunk)]
