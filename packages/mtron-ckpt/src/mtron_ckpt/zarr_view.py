"""A checkpoint as a zarr store, whatever its container, every chunk checked."""

import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import numpy as np
from crc32c import crc32c
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from mtron_ckpt.boxes import Shape, all_chunks, chunk_at, whole_box
from mtron_ckpt.dtypes import stored_dtype
from mtron_ckpt.index import ArrayRecord
from mtron_ckpt.layout import Chunk, PiecePlan, documents, plan_piece
from mtron_ckpt.local_arrays import ArrayForm
from mtron_ckpt.reading import Checkpoint
from mtron_ckpt.step_files import find_step
from mtron_ckpt.zarr_dtypes import register_zarr_dtypes
from mtron_ckpt.zarr_json import CHECKSUM_BYTES, chunk_key


class CheckpointStore(Store):
    """A read-only zarr store of the arrays of a checkpoint.

    Every array has one regular grid of chunks, also where it is stored in several pieces.
    Unlike a plain directory or ZIP file it never answers that a chunk is missing (which zarr
    takes for zeros): every chunk of every array is in the index.

    Args:
        checkpoint: an open checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(read_only=True)
        grids = [_whole_grid(checkpoint.record(name)) for name in checkpoint.names()]
        self._checkpoint = checkpoint
        self._documents = documents(grids)
        self._chunks = {
            chunk_key(grid.key, index): Chunk(grid, chunk_at(index, *_shapes(grid)))
            for grid in grids
            for index in all_chunks(*_shapes(grid))
        }

    @property
    def supports_writes(self) -> bool:
        """No: a checkpoint never changes."""
        return False

    @property
    def supports_deletes(self) -> bool:
        """No: a checkpoint never changes."""
        return False

    @property
    def supports_listing(self) -> bool:
        """Yes."""
        return True

    def __eq__(self, value: object) -> bool:
        return isinstance(value, CheckpointStore) and value._checkpoint is self._checkpoint

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return what is stored under `key`, or None if nothing ever was.

        Raises:
            CorruptCheckpoint: the chunk is damaged.
        """
        if key in self._documents:
            content = self._documents[key]
        elif key in self._chunks:
            content = self._read(self._chunks[key])
        else:
            return None
        return prototype.buffer.from_bytes(_cut(content, byte_range))

    def _read(self, chunk: Chunk) -> bytes:
        """Return a chunk as zarr stores it: padded, its checksum at the end."""
        piece, (offset, shape) = chunk.piece, chunk.box
        block = tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))
        content = np.zeros(piece.chunk_bytes, np.uint8)
        values = content.view(stored_dtype(piece.array.dtype)).reshape(piece.chunk_shape)
        values[tuple(slice(s) for s in shape)] = self._checkpoint.read(piece.array.name, block)
        return content.tobytes() + crc32c(content.data).to_bytes(CHECKSUM_BYTES, "little")

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Return several values or parts of values."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        """Tell whether something is stored under `key`."""
        return key in self._documents or key in self._chunks

    async def list(self) -> AsyncIterator[str]:
        """Yield all keys."""
        for key in (*self._documents, *self._chunks):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys that begin with `prefix`."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names of the keys and prefixes directly below `prefix`."""
        base = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        names = [key[len(base) :].split("/")[0] async for key in self.list_prefix(base)]
        for name in dict.fromkeys(names):
            yield name

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: a checkpoint never changes."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: a checkpoint never changes."""
        self._check_writable()


def _whole_grid(array: ArrayRecord) -> PiecePlan:
    """Return the one grid in which an array is shown, whatever pieces it is stored in."""
    form = ArrayForm(array.name, array.dtype, array.shape)
    box = whole_box(array.shape)
    if array.chunk_shape is None:
        return plan_piece(form, box)
    return PiecePlan(form, box, array.chunk_shape)


def _shapes(grid: PiecePlan) -> tuple[Shape, Shape]:
    return grid.box.shape, grid.chunk_shape


def _cut(content: bytes, part: ByteRequest | None) -> bytes:
    if isinstance(part, RangeByteRequest):
        return content[part.start : part.end]
    if isinstance(part, OffsetByteRequest):
        return content[part.offset :]
    if isinstance(part, SuffixByteRequest):
        return content[max(0, len(content) - part.suffix) :]
    return content


def zarr_store(path: str | os.PathLike[str]) -> Store:
    """Open a checkpoint as a zarr store: `zarr.open_group(zarr_store(path), mode="r")`.

    Also lets zarr-python know bfloat16 and fp8.

    Args:
        path: the directory of a step, or a root, of which the newest committed step is opened.

    Raises:
        ValueError, OSError: as `mtron_ckpt.open`.
    """
    register_zarr_dtypes()
    return CheckpointStore(Checkpoint(find_step(Path(path))))
