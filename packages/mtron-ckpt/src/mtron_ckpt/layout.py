"""Where every byte of a data file will be, planned before any of them is written.

Nothing is compressed, so shapes alone determine all positions; only checksums are unknown. The
file is written window by window; a window is a run of whole members.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from mtron_ckpt.arrays import ArraySource
from mtron_ckpt.boxes import (
    Box,
    Shape,
    all_chunks,
    chunk_at,
    chunk_grid,
    intersect,
    plan_chunk_shape,
)
from mtron_ckpt.dtypes import stored_dtype
from mtron_ckpt.local_arrays import ArrayForm, Blocks
from mtron_ckpt.zarr_json import (
    CHECKSUM_BYTES,
    array_document,
    chunk_key,
    kind_document,
    piece_key,
    pieces_document,
    root_document,
)
from mtron_ckpt.zip_format import central_header_bytes, end_records, payload_position

CHUNK_BYTES = 16 << 20
"""Largest chunk. Figures for this and the next three: docs/checkpoint-format.md."""
WINDOW_BYTES = 32 << 20
"""Largest run of members that is written at once (a single larger member is a run, too)."""
LARGE_BYTES = 1 << 20
"""Chunks of at least this size begin on a page."""
PAGE_BYTES = 4096
SMALL_ALIGNMENT = 64
_MEMBER_BYTES = 100
"""Of a ZIP member, beside its name and payload."""
_DOCUMENT_BYTES = 800
"""Of the `zarr.json` of a piece."""


@dataclass(frozen=True)
class PiecePlan:
    """The form of a piece: a rectangle of an array, to be stored with a chunk grid of its own."""

    array: ArrayForm
    box: Box
    chunk_shape: Shape

    @property
    def is_whole(self) -> bool:
        """Whether the piece is the array."""
        return self.box.shape == self.array.shape

    @property
    def key(self) -> str:
        """Where zarr finds it: at the array's name, or below it by its offset."""
        name = self.array.name
        return name if self.is_whole else piece_key(name, self.box.offset)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one stored chunk, without its checksum."""
        return prod(self.chunk_shape) * stored_dtype(self.array.dtype).itemsize


def plan_piece(array: ArrayForm, box: Box) -> PiecePlan:
    """Choose the chunks of a piece."""
    itemsize = stored_dtype(array.dtype).itemsize
    return PiecePlan(array, box, plan_chunk_shape(box.shape, itemsize, CHUNK_BYTES))


@dataclass(frozen=True)
class Chunk:
    """A chunk as the content of a member, and the part of the array that it holds."""

    piece: PiecePlan
    box: Box


@dataclass(frozen=True)
class Member:
    """A member of the ZIP file: name, positions of header and payload, and what it holds."""

    name: bytes
    header: int
    payload: int
    size: int
    content: bytes | Chunk

    @property
    def stop(self) -> int:
        """One past the last byte of the payload."""
        return self.payload + self.size


@dataclass(frozen=True)
class FilePlan:
    """A whole data file: its members in file order, then the directory, then nothing."""

    pieces: tuple[PiecePlan, ...]
    members: tuple[Member, ...]
    directory: int
    size: int

    def windows(self) -> Iterator[Sequence[Member]]:
        """Yield the runs of members to be staged and written together."""
        first = 0
        for number, member in enumerate(self.members):
            if number > first and member.stop - self.members[first].header > WINDOW_BYTES:
                yield self.members[first:number]
                first = number
        if first < len(self.members):
            yield self.members[first:]


def plan_file(pieces: tuple[PiecePlan, ...]) -> FilePlan:
    """Lay out the data file that holds `pieces`: metadata documents first, then all chunks."""
    members: list[Member] = []
    position = directory_bytes = 0
    for name, size, alignment, content in _contents(pieces):
        payload = payload_position(position, name, alignment)
        members.append(Member(name, position, payload, size, content))
        directory_bytes += central_header_bytes(name, position)
        position = payload + size
    end = end_records(len(members), position, directory_bytes)
    size = position + directory_bytes + len(end)
    return FilePlan(pieces, tuple(members), position, size)


def _contents(
    pieces: Sequence[PiecePlan],
) -> Iterator[tuple[bytes, int, int, bytes | Chunk]]:
    """Yield name, size, alignment and content of every member in file order."""
    for name, document in documents(pieces).items():
        yield name.encode(), len(document), 1, document
    for piece in pieces:
        size = piece.chunk_bytes
        alignment = PAGE_BYTES if size >= LARGE_BYTES else SMALL_ALIGNMENT
        for index in all_chunks(piece.box.shape, piece.chunk_shape):
            box = chunk_at(index, piece.box.shape, piece.chunk_shape).shifted(piece.box.offset)
            key = chunk_key(piece.key, index).encode()
            yield key, size + CHECKSUM_BYTES, alignment, Chunk(piece, box)


def documents(pieces: Sequence[PiecePlan]) -> Mapping[str, bytes]:
    """Return the `zarr.json` of every group and array, by key."""
    kinds = dict.fromkeys(piece.array.name.partition("/")[0] for piece in pieces)
    result = {"zarr.json": root_document()}
    result |= {f"{kind}/zarr.json": kind_document(kind) for kind in kinds}
    for piece in pieces:
        name, dtype, shape = piece.array
        if not piece.is_whole:
            result[f"{name}/zarr.json"] = pieces_document(dtype, shape)
        result[f"{piece.key}/zarr.json"] = array_document(dtype, piece.box.shape, piece.chunk_shape)
    return result


def stored_bytes(piece: PiecePlan) -> int:
    """Return at least the bytes that a piece takes in a data file."""
    chunks = prod(chunk_grid(piece.box.shape, piece.chunk_shape))
    record = _MEMBER_BYTES + 2 * len(piece.key)
    return chunks * (piece.chunk_bytes + PAGE_BYTES + record) + _DOCUMENT_BYTES + record


class WindowFiller:
    """Copies the values of a plan into buffers, window after window.

    Args:
        blocks: where the values of each array come from, by name.
    """

    def __init__(self, blocks: Mapping[str, Blocks]) -> None:
        self._blocks = blocks
        self._source: ArraySource | None = None
        self._values = np.empty(0)

    def fill(self, window: Sequence[Member], buffer: memoryview) -> None:
        """Put the payloads of `window` into `buffer`; headers and checksums stay free.

        Args:
            window: consecutive members.
            buffer: the bytes of the file from the first member's header on.
        """
        start = window[0].header
        for member in window:
            target = buffer[member.payload - start : member.stop - start]
            if isinstance(member.content, bytes):
                target[:] = member.content
            else:
                self._copy(member.content, target[:-CHECKSUM_BYTES])

    def _copy(self, chunk: Chunk, target: memoryview) -> None:
        piece = chunk.piece
        content = np.frombuffer(target, dtype=np.uint8)
        if chunk.box.shape != piece.chunk_shape:
            content[...] = 0  # the buffer has held something else
        values = content.view(stored_dtype(piece.array.dtype)).reshape(piece.chunk_shape)
        for box, source in self._blocks[piece.array.name]:
            shared = intersect(box, chunk.box)
            if shared is not None:
                values[shared.within(chunk.box)] = self._load(source)[shared.within(box)]

    def _load(self, source: ArraySource) -> np.ndarray:
        """Return the values of `source`, kept while the chunks of one block follow each other."""
        if isinstance(source, np.ndarray):
            return source
        if self._source is not source:
            self._source, self._values = None, np.empty(0)  # free the last one first
            self._values = np.asarray(source)
            if self._values.shape != tuple(source.shape) or self._values.dtype != source.dtype:
                raise ValueError(
                    f"a lazy array promised {source.dtype} {tuple(source.shape)}, got "
                    f"{self._values.dtype} {self._values.shape}; make its __array__ keep to that"
                )
            self._source = source
        return self._values
