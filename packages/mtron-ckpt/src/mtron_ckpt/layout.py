"""Where every byte of a data file will be, planned before any of them is written.

Nothing is compressed, so shapes alone determine all positions; only checksums are unknown. The
file is written window by window; a window is a run of whole members.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from mtron_ckpt.arrays import ArraySource, LocalArray
from mtron_ckpt.boxes import Box, Shape, all_chunks, chunk_at, find_gap, intersect, plan_chunk_shape
from mtron_ckpt.dtypes import dtype_name, stored_dtype
from mtron_ckpt.names import check_array_name
from mtron_ckpt.zarr_json import CHECKSUM_BYTES, array_document, chunk_key, group_document
from mtron_ckpt.zip_format import central_header_bytes, end_records, payload_position

CHUNK_BYTES = 16 << 20
"""Largest chunk. Figures for this and the next three: docs/checkpoint-format.md."""
WINDOW_BYTES = 32 << 20
"""Largest run of members that is written at once (a single larger member is a run, too)."""
LARGE_BYTES = 1 << 20
"""Chunks of at least this size begin on a page."""
PAGE_BYTES = 4096
SMALL_ALIGNMENT = 64

Blocks = Sequence[tuple[Box, ArraySource]]
"""The rectangles that the values of an array come from."""


@dataclass(frozen=True)
class ArrayPlan:
    """The form of an array to be saved."""

    name: str
    dtype: str
    shape: Shape
    chunk_shape: Shape

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one stored chunk, without its checksum."""
        return prod(self.chunk_shape) * stored_dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Chunk:
    """A chunk as the content of a member."""

    array: ArrayPlan
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

    arrays: tuple[ArrayPlan, ...]
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


def plan_array(name: str, value: LocalArray | Sequence[LocalArray]) -> tuple[ArrayPlan, Blocks]:
    """Check an array that a caller wants saved and choose its chunks.

    Raises:
        ValueError: naming the array: a bad name, an element type that cannot be stored, blocks
            that disagree, overlap or leave something out.
    """
    check_array_name(name)
    locals_ = [value] if isinstance(value, LocalArray) else list(value)
    if not locals_:
        raise ValueError(f"{name}: no block was given; give the blocks that make up the array")
    shape = _integers(locals_[0].global_shape)
    dtype = locals_[0].data.dtype
    if not isinstance(dtype, np.dtype):
        raise ValueError(
            f"{name}: not a numpy array, got {type(locals_[0].data).__name__}; "
            "convert tensors with mtron_ckpt.torch_io.from_torch"
        )
    for local in locals_:
        if _integers(local.global_shape) != shape or local.data.dtype != dtype:
            raise ValueError(
                f"{name}: all blocks must agree on element type and global shape, got {dtype} "
                f"{shape} and {local.data.dtype} {tuple(local.global_shape)}"
            )
    blocks = [(Box(_integers(x.offset), _integers(x.data.shape)), x.data) for x in locals_]
    if problem := find_gap(shape, [box for box, _ in blocks]):
        raise ValueError(
            f"{name}: {problem}, got an array of shape {shape}; give every element exactly once"
        )
    chunk_shape = plan_chunk_shape(shape, dtype.itemsize, CHUNK_BYTES)
    return ArrayPlan(name, dtype_name(dtype, name), shape, chunk_shape), blocks


def _integers(values: Sequence[int]) -> Shape:
    """Return plain integers: callers may have numpy's."""
    return tuple(int(value) for value in values)


def plan_file(arrays: tuple[ArrayPlan, ...]) -> FilePlan:
    """Lay out the data file that holds `arrays`: metadata documents first, then all chunks."""
    members: list[Member] = []
    position = directory_bytes = 0
    for name, size, alignment, content in _contents(arrays):
        payload = payload_position(position, name, alignment)
        members.append(Member(name, position, payload, size, content))
        directory_bytes += central_header_bytes(name, position)
        position = payload + size
    end = end_records(len(members), position, directory_bytes)
    size = position + directory_bytes + len(end)
    return FilePlan(arrays, tuple(members), position, size)


def _contents(
    arrays: Sequence[ArrayPlan],
) -> Iterator[tuple[bytes, int, int, bytes | Chunk]]:
    """Yield name, size, alignment and content of every member in file order."""
    for name, document in documents(arrays).items():
        yield name.encode(), len(document), 1, document
    for array in arrays:
        size = array.chunk_bytes
        alignment = PAGE_BYTES if size >= LARGE_BYTES else SMALL_ALIGNMENT
        for index in all_chunks(array.shape, array.chunk_shape):
            box = chunk_at(index, array.shape, array.chunk_shape)
            key = chunk_key(array.name, index).encode()
            yield key, size + CHECKSUM_BYTES, alignment, Chunk(array, box)


def documents(arrays: Sequence[Any]) -> Mapping[str, bytes]:
    """Return the `zarr.json` of every group and array, by key.

    Args:
        arrays: objects with `name`, `dtype`, `shape` and `chunk_shape`.
    """
    kinds = dict.fromkeys(array.name.partition("/")[0] for array in arrays)
    result = {"zarr.json": group_document(None)}
    result |= {f"{kind}/zarr.json": group_document(kind) for kind in kinds}
    for array in arrays:
        document = array_document(array.dtype, tuple(array.shape), tuple(array.chunk_shape))
        result[f"{array.name}/zarr.json"] = document
    return result


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
        array = chunk.array
        content = np.frombuffer(target, dtype=np.uint8)
        if chunk.box.shape != array.chunk_shape:
            content[...] = 0  # the buffer has held something else
        values = content.view(stored_dtype(array.dtype)).reshape(array.chunk_shape)
        for box, source in self._blocks[array.name]:
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
