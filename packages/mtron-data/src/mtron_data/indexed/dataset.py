"""Reads a `.bin/.idx` pair through memory maps."""

import hashlib
from bisect import bisect_left, bisect_right
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np

from mtron_data.indexed.check import check_ends, index_violations
from mtron_data.indexed.layout import HEADER_BYTES, LENGTH, POINTER, Header, parse_header
from mtron_data.indexed.writer import suffixed
from mtron_data.manifest import MANIFEST, Manifest
from mtron_data.tokenizer.protocol import Tokenizer

TOKENS = "tokens"
"""Name, without suffix, of the pair in a prepared directory."""

_CHECKED_WHOLE = 1_000_000
_FINGERPRINT_BLOCKS = 64
_FINGERPRINT_BLOCK_BYTES = 4096


class TokenDataset:
    """A tokenized corpus: one long row of tokens, cut into documents.

    Opening maps both files and checks the index: all of it up to a million sequences, both ends
    of a larger one (`verify` checks everything, the tokens too).

    Args:
        path: a directory written by `prepare`, or the prefix of a `.bin/.idx` pair, or either
            file of a pair.
        check_index: check the entries of the index; `verify` does it later and reports them all.

    Raises:
        ValueError: the files do not belong together, are damaged, or their tokenizer is not the
            one that the manifest names.
        OSError: a file cannot be read.
    """

    def __init__(self, path: str | Path, *, check_index: bool = True) -> None:
        self.prefix = find_prefix(path)
        """Path of the pair without suffix."""
        self.manifest = _manifest(self.prefix)
        """What `prepare` recorded; none for a bare pair."""
        self.header = read_header(self.index_path)
        """The index's header."""
        if self.dtype.kind not in "iu":
            raise ValueError(f"{self.index_path}: byte 17: tokens are integers, got {self.dtype}")
        check_ends(self.index_path, self.bin_path, self.header)
        index = np.memmap(self.index_path, np.uint8, "r").view(np.ndarray)
        self.lengths = _part(index, HEADER_BYTES, LENGTH, self.num_sequences)
        """Tokens in each sequence, int32 `[sequences]`."""
        self.pointers = _part(index, self.header.pointers_offset, POINTER, self.num_sequences)
        """Byte offset of each sequence, int64 `[sequences]`."""
        self.document_index = _part(
            index, self.header.documents_offset, POINTER, self.header.num_entries
        )
        """First sequence of each document and the number of sequences, int64 `[documents + 1]`."""
        if check_index and self.num_sequences <= _CHECKED_WHOLE:
            for violation in index_violations(self.index_path, self.header, limit=1):
                raise ValueError(str(violation))
        num_bytes = self.bin_path.stat().st_size
        self.tokens = (
            np.memmap(self.bin_path, self.dtype, "r").view(np.ndarray)
            if num_bytes
            else np.empty(0, self.dtype)
        )
        """All tokens, `[tokens]`, memory-mapped."""

    @property
    def bin_path(self) -> Path:
        """The tokens' file."""
        return suffixed(self.prefix, ".bin")

    @property
    def index_path(self) -> Path:
        """The index's file."""
        return suffixed(self.prefix, ".idx")

    @property
    def dtype(self) -> np.dtype:
        """Type of a token."""
        return self.header.dtype

    @property
    def num_sequences(self) -> int:
        """Sequences; a document has one unless it was split into sentences."""
        return self.header.num_sequences

    @property
    def num_documents(self) -> int:
        """Documents, empty ones included."""
        return self.header.num_entries - 1

    @property
    def num_tokens(self) -> int:
        """Tokens, end-of-document tokens included."""
        return self.tokens.size

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the content wherever it lies: a hash of sizes, header and 64 samples."""
        digest = hashlib.blake2b(digest_size=16)
        size = self.bin_path.stat().st_size
        digest.update(self.header.pack() + size.to_bytes(8, "little"))
        last = max(size - _FINGERPRINT_BLOCK_BYTES, 0)
        with self.bin_path.open("rb") as file:
            for block in range(_FINGERPRINT_BLOCKS):
                file.seek(last * block // (_FINGERPRINT_BLOCKS - 1))
                digest.update(file.read(_FINGERPRINT_BLOCK_BYTES))
        return digest.hexdigest()

    def __len__(self) -> int:
        return self.num_documents

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        """Return the tokens of a document, `[tokens]`, memory-mapped; of several for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        index %= len(self)
        first, last = (self._token_offset(int(self.document_index[i])) for i in (index, index + 1))
        return self.tokens[first:last]

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """Return where documents begin in `start < offset < stop`.

        Args:
            start: offset in tokens.
            stop: offset in tokens.

        Returns:
            Offsets in tokens, int64, ascending, each once (empty documents begin nowhere).
        """
        # bisect, because numpy's searchsorted would copy these arrays, which are not aligned.
        size = self.dtype.itemsize
        low = bisect_right(self.pointers, start * size)
        high = bisect_left(self.pointers, stop * size, lo=low)
        if low == high:
            return np.empty(0, np.int64)
        first = bisect_left(self.document_index, low)
        last = bisect_left(self.document_index, high, lo=first)
        return np.unique(self.pointers[self.document_index[first:last]] // size)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer other than the one that made the dataset.

        Raises:
            ValueError: the manifest names another; without a manifest nothing is known.
        """
        found = getattr(tokenizer, "fingerprint", None)
        if self.manifest is not None and found not in (None, self.manifest.tokenizer.fingerprint):
            raise ValueError(
                f"{self.prefix}: was prepared with the tokenizer "
                f"{self.manifest.tokenizer.fingerprint[:12]}, got {str(found)[:12]}; use the "
                f"tokenizer in {self.prefix.parent}"
            )

    def _token_offset(self, sequence: int) -> int:
        if sequence == self.num_sequences:
            return self.num_tokens
        return int(self.pointers[sequence]) // self.dtype.itemsize


def find_prefix(path: str | Path) -> Path:
    """Return the prefix of the pair that `path` means.

    Raises:
        ValueError: there is no such pair.
    """
    path = Path(path)
    prefix = path / TOKENS if path.is_dir() else path
    if not path.is_dir() and path.suffix in (".bin", ".idx"):
        prefix = path.with_suffix("")
    missing = [
        str(file) for suffix in (".bin", ".idx") if not (file := suffixed(prefix, suffix)).is_file()
    ]
    if missing:
        raise ValueError(
            f"{path}: is no prepared dataset, {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; write one with "
            "`mtron-data prepare`"
        )
    return prefix


def read_header(path: Path) -> Header:
    """Read the header of the index `path`.

    Raises:
        ValueError: it is not an index.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return parse_header(file.read(HEADER_BYTES), path)


def _manifest(prefix: Path) -> Manifest | None:
    path = prefix.with_name(MANIFEST)
    if prefix.name != TOKENS or not path.is_file():
        return None
    manifest = Manifest.load(path)
    manifest.check_tokenizer_files(prefix.parent)
    return manifest


def _part(index: np.ndarray, offset: int, dtype: np.dtype, count: int) -> np.ndarray:
    return index[offset : offset + count * dtype.itemsize].view(dtype)
