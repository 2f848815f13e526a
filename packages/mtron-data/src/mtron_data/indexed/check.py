"""The invariants of an index, each with the byte offset where it is violated."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mtron_data.indexed.layout import HEADER_BYTES, LENGTH, POINTER, Header

_BLOCK = 1 << 18


@dataclass(frozen=True)
class Violation:
    """An invariant that a file breaks.

    Attributes:
        path: the file.
        offset: byte in it.
        message: what is wrong there and how to mend it.
    """

    path: Path
    offset: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}: byte {self.offset}: {self.message}"


def check_ends(index: Path, tokens: Path, header: Header) -> None:
    """Check sizes, and the first and last entries, without reading the whole index.

    Args:
        index: the `.idx` file.
        tokens: the `.bin` file.
        header: of the index.

    Raises:
        ValueError: the index is cut short, or it is the index of another `.bin`.
    """
    size = index.stat().st_size
    if size == header.num_bytes + header.num_sequences and header.num_sequences:
        raise ValueError(
            f"{index}: byte {header.num_bytes}: has a mode for each sequence, as multimodal "
            "datasets do; only text is read"
        )
    if size != header.num_bytes:
        raise ValueError(
            f"{index}: byte {min(size, header.num_bytes)}: the header announces "
            f"{header.num_sequences} sequences and {header.num_entries - 1} documents, "
            f"{header.num_bytes} bytes, got {size}; the file is damaged: copy it or prepare it "
            "again"
        )
    if header.num_entries < 1:
        raise ValueError(f"{index}: byte 26: the document index is empty; prepare it again")
    expected = 0
    if header.num_sequences:
        with index.open("rb") as file:
            file.seek(header.pointers_offset - LENGTH.itemsize)
            length = int(np.frombuffer(file.read(LENGTH.itemsize), LENGTH)[0])
            file.seek(header.documents_offset - POINTER.itemsize)
            pointer = int(np.frombuffer(file.read(POINTER.itemsize), POINTER)[0])
        expected = pointer + length * header.dtype.itemsize
    found = tokens.stat().st_size
    if found != expected:
        raise ValueError(
            f"{tokens}: byte {max(min(found, expected), 0)}: the index {index} describes "
            f"{expected} bytes, got {found}; the file is cut short or belongs to another index: "
            "copy the pair or prepare it again"
        )


def index_violations(path: Path, header: Header, limit: int) -> list[Violation]:
    """Return what is wrong in an index whose size is right, reading it in constant memory.

    Args:
        path: the `.idx` file.
        header: its header.
        limit: return at most so many violations.
    """
    found = [*islice(_check_sequences(path, header), limit)]
    return [*found, *islice(_check_documents(path, header), limit - len(found))]


def _check_sequences(path: Path, header: Header) -> Iterator[Violation]:
    """Lengths are not negative, and each sequence begins where the one before ends."""
    position = 0
    for first in range(0, header.num_sequences, _BLOCK):
        count = min(_BLOCK, header.num_sequences - first)
        lengths = _read(path, HEADER_BYTES, LENGTH, first, count)
        pointers = _read(path, header.pointers_offset, POINTER, first, count)
        for i in np.flatnonzero(lengths < 0):
            offset = HEADER_BYTES + LENGTH.itemsize * (first + int(i))
            yield Violation(
                path, offset, f"sequence {first + i} has a negative length, got {lengths[i]}"
            )
        ends = position + np.cumsum(lengths.astype(np.int64) * header.dtype.itemsize)
        expected = np.concatenate([[position], ends[:-1]])
        for i in np.flatnonzero(pointers != expected):
            offset = header.pointers_offset + POINTER.itemsize * (first + int(i))
            yield Violation(
                path,
                offset,
                f"sequence {first + i} must begin at byte {expected[i]} of the tokens, where the "
                f"one before ends, got {pointers[i]}",
            )
        position = int(ends[-1])


def _check_documents(path: Path, header: Header) -> Iterator[Violation]:
    """The document index begins with 0, never descends, and ends with the number of sequences."""
    before = 0
    for first in range(0, header.num_entries, _BLOCK):
        count = min(_BLOCK, header.num_entries - first)
        entries = _read(path, header.documents_offset, POINTER, first, count)
        for i in np.flatnonzero(np.diff(entries, prepend=before) < 0):
            offset = header.documents_offset + POINTER.itemsize * (first + int(i))
            yield Violation(
                path, offset, f"document {first + i} begins before its predecessor: {entries[i]}"
            )
        if first == 0 and entries[0] != 0:
            yield Violation(
                path,
                header.documents_offset,
                f"the first document must begin with sequence 0, got {entries[0]}",
            )
        before = int(entries[-1])
    if before != header.num_sequences:
        yield Violation(
            path,
            header.num_bytes - POINTER.itemsize,
            f"the last document must end with sequence {header.num_sequences}, got {before}",
        )


def _read(path: Path, offset: int, dtype: np.dtype, first: int, count: int) -> np.ndarray:
    return np.fromfile(path, dtype, count, offset=offset + first * dtype.itemsize)
