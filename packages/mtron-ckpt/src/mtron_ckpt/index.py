"""index.json: of every array, where its chunks are."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Annotated

from pydantic import Field, model_validator

from mtron_ckpt.boxes import (
    Box,
    Shape,
    chunks_touching,
    find_gap,
    intersect,
    nth_chunk,
    whole_box,
)
from mtron_ckpt.dtypes import stored_dtype
from mtron_ckpt.errors import Damage
from mtron_ckpt.local_arrays import ArrayForm
from mtron_ckpt.manifest import Document, FileRecord

INDEX_FILE = "index.json"
Unsigned = Annotated[int, Field(ge=0)]
Lengths = tuple[Unsigned, ...]
ChunkShape = tuple[Annotated[int, Field(ge=1)], ...]
Chunks = tuple[tuple[Unsigned, Unsigned, Unsigned], ...]


@dataclass(frozen=True, eq=False)
class Piece:
    """A rectangle of an array that is stored with a chunk grid of its own, and its chunks.

    Attributes:
        name: the array's.
        dtype: zarr v3 name of the element type.
        box: which part of the array it is.
        chunk_shape: shape of its chunks.
        chunks: file, position and CRC-32C of each, last dim fastest.
    """

    name: str
    dtype: str
    box: Box
    chunk_shape: Shape
    chunks: Chunks

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one of its chunks, without the checksum beside it."""
        return prod(self.chunk_shape) * stored_dtype(self.dtype).itemsize

    def chunk_box(self, number: int) -> Box:
        """Return the part of the array that a chunk holds."""
        return nth_chunk(number, self.box.shape, self.chunk_shape).shifted(self.box.offset)

    def chunks_touching(self, box: Box) -> Iterator[tuple[int, Box]]:
        """Yield number and box of each chunk that shares elements with `box`."""
        shared = intersect(self.box, box)
        if shared is None:
            return
        start = self.box.offset
        inside = Box(tuple(o - s for o, s in zip(shared.offset, start, strict=True)), shared.shape)
        for number, chunk in chunks_touching(inside, self.box.shape, self.chunk_shape):
            yield number, chunk.shifted(start)

    def damage(self, path: str, number: int, problem: str) -> Damage:
        """Describe that a chunk is damaged in the file at `path`."""
        position, box = self.chunks[number][1], self.chunk_box(number)
        rows = (box.offset[0], box.stop[0]) if box.shape else None
        return Damage(path, position, position + self.chunk_bytes, problem, self.name, rows)


class PieceRecord(Document):
    """One of the pieces that an array is stored in."""

    offset: Lengths
    """Where it begins in the array."""
    shape: Lengths
    """Its extent."""
    chunk_shape: ChunkShape
    """Shape of every chunk of its grid, which begins at `offset`; those at the upper edges are
    padded with zeros."""
    chunks: Chunks
    """File (position in `Manifest.data`), position of the values in it and their CRC-32C, of
    each chunk of the grid, last dim fastest."""


class ArrayRecord(Document):
    """An array and where its chunks are: in one grid, or in several pieces with a grid each."""

    name: str
    """`<kind>/<parameter name>`."""
    dtype: str
    """zarr v3 name of the element type."""
    shape: Lengths
    """Global shape."""
    chunk_shape: ChunkShape | None = None
    """Of an array in one piece: as in `PieceRecord`."""
    chunks: Chunks | None = None
    """Of an array in one piece: as in `PieceRecord`."""
    pieces: tuple[PieceRecord, ...] | None = None
    """Of an array in several pieces."""

    @model_validator(mode="after")
    def _has_one_form(self) -> "ArrayRecord":
        given = (self.chunk_shape is None, self.chunks is None, self.pieces is None)
        if given not in ((False, False, True), (True, True, False)):
            raise ValueError(f"{self.name}: either chunk_shape and chunks, or pieces")
        return self

    @cached_property
    def parts(self) -> tuple[Piece, ...]:
        """What the array consists of, whichever form the record has."""
        if self.chunk_shape is not None and self.chunks is not None:
            box = whole_box(self.shape)
            return (Piece(self.name, self.dtype, box, self.chunk_shape, self.chunks),)
        return tuple(
            Piece(self.name, self.dtype, Box(p.offset, p.shape), p.chunk_shape, p.chunks)
            for p in self.pieces or ()
        )


class Index(Document):
    """index.json: all arrays."""

    arrays: tuple[ArrayRecord, ...]
    """In the order in which they were saved."""


def dump_index(index: Index) -> bytes:
    """Return index.json: one array per line."""
    documents = [array.model_dump(exclude_none=True) for array in index.arrays]
    lines = [json.dumps(document, separators=(",", ":")) for document in documents]
    return ('{"arrays":[\n' + ",\n".join(lines) + "\n]}\n").encode()


class WrittenPiece(Document):
    """A piece in the data file of the writer that wrote it."""

    name: str
    """The array's."""
    offset: Lengths
    """As in `PieceRecord`, like the next two."""
    shape: Lengths
    chunk_shape: ChunkShape
    chunks: tuple[tuple[Unsigned, Unsigned], ...]
    """Position and CRC-32C of each chunk."""


class Written(Document):
    """What one writer has written, durably."""

    file: FileRecord | None
    """Its data file; none if it had nothing to write."""
    pieces: tuple[WrittenPiece, ...]
    """What is in it."""


def build_index(forms: Sequence[ArrayForm], written: Sequence[Written]) -> Index:
    """Put together what the writers have written.

    Args:
        forms: the arrays of the checkpoint, in order.
        written: of each writer; data files are numbered in this order.

    Raises:
        ValueError: the pieces of an array are not exactly the array.
    """
    pieces: dict[str, list[PieceRecord]] = {form.name: [] for form in forms}
    files = [one for one in written if one.file is not None]
    for number, one in enumerate(files):
        for piece in one.pieces:
            pieces[piece.name].append(
                PieceRecord(
                    offset=piece.offset,
                    shape=piece.shape,
                    chunk_shape=piece.chunk_shape,
                    chunks=tuple((number, *chunk) for chunk in piece.chunks),
                )
            )
    return Index(arrays=tuple(_array_record(form, pieces[form.name]) for form in forms))


def _array_record(form: ArrayForm, pieces: list[PieceRecord]) -> ArrayRecord:
    problem = find_gap(form.shape, [Box(piece.offset, piece.shape) for piece in pieces])
    if problem or not pieces:
        raise ValueError(f"{form.name}: what was written is not the array: {problem}")
    first = pieces[0]
    if first.shape == form.shape:
        return ArrayRecord(
            name=form.name,
            dtype=form.dtype,
            shape=form.shape,
            chunk_shape=first.chunk_shape,
            chunks=first.chunks,
        )
    ordered = tuple(sorted(pieces, key=lambda piece: piece.offset))
    return ArrayRecord(name=form.name, dtype=form.dtype, shape=form.shape, pieces=ordered)
