"""The bytes of the `.bin/.idx` pair, as Megatron writes and reads them.

`.bin` holds the tokens of all sequences one after the other, in C order, in one dtype, and nothing
else. `.idx` describes it, little-endian and without padding:

    offset  0   9 bytes  MMIDIDX followed by two zero bytes
    offset  9   uint64   version, 1
    offset 17   uint8    code of the dtype
    offset 18   uint64   S, number of sequences
    offset 26   uint64   D, length of the document index (documents + 1)
    offset 34   int32[S] tokens in each sequence
                int64[S] byte offset of each sequence in .bin
                int64[D] first sequence of each document, and S at the end

A document is a run of sequences; an empty one repeats its neighbour's entry. Multimodal datasets
append one int8 per sequence, which this version refuses.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER_BYTES = 34
SMALL_VOCABULARY = 65500
"""Megatron stores ids of vocabularies below this size in 16 bits."""

LENGTH = np.dtype("<i4")
POINTER = np.dtype("<i8")

_PREFIX = struct.Struct("<9sQBQQ")
_CODES = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f8"),
    7: np.dtype("<f4"),
    8: np.dtype("<u2"),
}


@dataclass(frozen=True)
class Header:
    """The first 34 bytes of an `.idx` file.

    Attributes:
        dtype: of the tokens.
        num_sequences: S.
        num_entries: D, one more than there are documents.
    """

    dtype: np.dtype
    num_sequences: int
    num_entries: int

    @property
    def pointers_offset(self) -> int:
        """Where the byte offsets of the sequences begin."""
        return HEADER_BYTES + LENGTH.itemsize * self.num_sequences

    @property
    def documents_offset(self) -> int:
        """Where the document index begins."""
        return self.pointers_offset + POINTER.itemsize * self.num_sequences

    @property
    def num_bytes(self) -> int:
        """Size of the whole `.idx` file."""
        return self.documents_offset + POINTER.itemsize * self.num_entries

    def pack(self) -> bytes:
        """Return the 34 bytes."""
        code = next(code for code, dtype in _CODES.items() if dtype == self.dtype)
        return _PREFIX.pack(MAGIC, VERSION, code, self.num_sequences, self.num_entries)


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the dtype in which Megatron stores ids of a vocabulary of `vocab_size` tokens."""
    return np.dtype("<u2" if vocab_size < SMALL_VOCABULARY else "<i4")


def parse_header(data: bytes, path: Path) -> Header:
    """Read the header of an `.idx` file.

    Args:
        data: at least the first 34 bytes of the file, or all of a shorter one.
        path: the file, for messages.

    Raises:
        ValueError: naming the file and the byte offset of what is wrong.
    """
    if len(data) < HEADER_BYTES:
        raise ValueError(
            f"{path}: is too short for an index, got {len(data)} bytes, the header alone has "
            f"{HEADER_BYTES}; prepare the dataset again"
        )
    magic, version, code, num_sequences, num_entries = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(
            f"{path}: byte 0: is not an index, got {magic!r} where {MAGIC!r} belongs; name the "
            ".idx file of a prepared dataset"
        )
    if version != VERSION:
        raise ValueError(
            f"{path}: byte 9: unknown version, got {version}; only version {VERSION} is known"
        )
    if code not in _CODES:
        raise ValueError(f"{path}: byte 17: unknown dtype, got code {code}; known are 1 to 8")
    return Header(_CODES[code], num_sequences, num_entries)
