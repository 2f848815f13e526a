"""Writes a `.bin/.idx` pair in constant memory."""

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np

from mtron_data.indexed.layout import LENGTH, POINTER, Header

_BLOCK = 1 << 17


class IndexedWriter:
    """Appends documents to `<prefix>.bin` and writes `<prefix>.idx` at the end.

    The files are those that Megatron's `IndexedDatasetBuilder` writes, byte for byte. Nothing
    grows with the number of documents: lengths and the document index wait in temporary files.
    Use as a context manager; on an exception the index is not written.

    Args:
        prefix: path without `.bin` and `.idx`; existing files are replaced.
        dtype: of the tokens, see `token_dtype`.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype) -> None:
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype)
        self.num_tokens = 0
        """Tokens written so far."""
        self.num_sequences = 0
        """Sequences written so far."""
        self.num_documents = 0
        """Documents written so far, empty ones included."""
        with ExitStack() as stack:
            directory = self.prefix.parent
            self._bin = stack.enter_context(suffixed(self.prefix, ".bin").open("wb"))
            self._lengths = stack.enter_context(tempfile.TemporaryFile(dir=directory))
            self._entries = stack.enter_context(tempfile.TemporaryFile(dir=directory))
            self._stack = stack.pop_all()
        self._entries.write(np.zeros(1, POINTER).tobytes())

    def add_document(self, tokens: np.ndarray, lengths: Sequence[int] | np.ndarray) -> None:
        """Append one document.

        Args:
            tokens: ids of all its sequences, `[tokens]`, integers that fit the dtype.
            lengths: tokens in each of its sequences; none for an empty document.
        """
        self._append(tokens, np.asarray(lengths, np.int64))
        self.num_documents += 1
        self._entries.write(np.array([self.num_sequences], POINTER).tobytes())

    def add_documents(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append many documents of one sequence each, or of none where the length is 0.

        Args:
            tokens: ids of all documents, `[tokens]`, integers that fit the dtype.
            lengths: `[documents]`, tokens in each.
        """
        counts = np.asarray(lengths, np.int64)
        entries = self.num_sequences + np.cumsum(counts > 0, dtype=POINTER)
        self._append(tokens, counts[counts > 0])
        self.num_documents += len(counts)
        self._entries.write(entries.astype(POINTER, copy=False).tobytes())

    def close(self) -> None:
        """Write the index and close both files."""
        header = Header(self.dtype, self.num_sequences, self.num_documents + 1)
        try:
            self._bin.flush()
            with suffixed(self.prefix, ".idx").open("wb") as index:
                index.write(header.pack())
                _copy(self._lengths, index)
                self._write_pointers(index)
                _copy(self._entries, index)
        finally:
            self._stack.close()

    def _append(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        assert int(lengths.sum()) == tokens.size, "lengths do not add up to tokens"
        if lengths.size and int(lengths.max()) > np.iinfo(LENGTH).max:
            raise ValueError(
                f"{self.prefix}: a sequence of {int(lengths.max()):,} tokens does not fit the "
                f"format, which allows {np.iinfo(LENGTH).max:,}; split the document"
            )
        self._bin.write(np.ascontiguousarray(self._narrow(tokens)).data)
        self._lengths.write(lengths.astype(LENGTH).tobytes())
        self.num_tokens += tokens.size
        self.num_sequences += len(lengths)

    def _narrow(self, tokens: np.ndarray) -> np.ndarray:
        if tokens.dtype != self.dtype and tokens.size and self.dtype.kind in "iu":
            least, most = int(tokens.min()), int(tokens.max())
            limits = np.iinfo(self.dtype)
            if least < limits.min or most > limits.max:
                raise ValueError(
                    f"{self.prefix}: token ids from {least} to {most} do not fit {self.dtype}; "
                    "use the dtype of `token_dtype(vocab_size)`"
                )
        return tokens.astype(self.dtype, copy=False)

    def _write_pointers(self, index: IO[bytes]) -> None:
        position = 0
        self._lengths.seek(0)
        while block := self._lengths.read(_BLOCK * LENGTH.itemsize):
            num_bytes = np.frombuffer(block, LENGTH).astype(POINTER) * self.dtype.itemsize
            ends = position + np.cumsum(num_bytes, dtype=POINTER)
            index.write((ends - num_bytes).astype(POINTER, copy=False).tobytes())
            position = int(ends[-1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._stack.close()


def suffixed(prefix: Path, suffix: str) -> Path:
    """Append `suffix` to the name; unlike `Path.with_suffix`, a dot in the name stays."""
    return prefix.with_name(prefix.name + suffix)


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    source.seek(0)
    shutil.copyfileobj(source, target, _BLOCK)
