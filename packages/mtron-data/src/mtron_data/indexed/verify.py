"""Checks a prepared dataset against every invariant."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtron_data.indexed.check import Violation, index_violations
from mtron_data.indexed.dataset import TokenDataset
from mtron_data.manifest import DATA_FILES, FileRecord, Manifest

_BLOCK_TOKENS = 1 << 22
_LIMIT = 20


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        prefix: path of the pair without suffix.
        num_documents: documents in the index.
        num_tokens: tokens in the index.
        violations: at most 20 of the index and 20 of the tokens; none if all is well.
    """

    prefix: Path
    num_documents: int
    num_tokens: int
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        """Whether every invariant holds."""
        return not self.violations


def verify(path: str | Path, vocab_size: int | None = None) -> VerifyReport:
    """Check every invariant of a dataset, reading all of it in constant memory.

    The sizes of both files and every entry of the index; every token id against the vocabulary;
    and against the manifest, if there is one, all counts and the digests of both files.

    Args:
        path: a prepared dataset, see `TokenDataset`.
        vocab_size: of a bare pair, which does not say it; none checks no ids there.

    Raises:
        ValueError: the dataset cannot be opened: file, byte offset and remedy are named.
        OSError: a file cannot be read.
    """
    dataset = TokenDataset(path, check_index=False)
    manifest = dataset.manifest
    if manifest is not None:
        vocab_size = manifest.tokenizer.vocab_size
    found = index_violations(dataset.index_path, dataset.header, _LIMIT)
    found += _check_tokens(dataset, vocab_size)
    if manifest is not None:
        found += _check_counts(dataset, manifest)
        found += _check_digests(dataset, manifest)
    return VerifyReport(dataset.prefix, dataset.num_documents, dataset.num_tokens, tuple(found))


def _check_tokens(dataset: TokenDataset, vocab_size: int | None) -> list[Violation]:
    limit = np.inf if vocab_size is None else vocab_size
    found: list[Violation] = []
    for start in range(0, dataset.num_tokens, _BLOCK_TOKENS):
        block = dataset.tokens[start : start + _BLOCK_TOKENS]
        if block.max() < limit and block.min() >= 0:
            continue
        for at in np.flatnonzero((block >= limit) | (block < 0))[: _LIMIT - len(found)]:
            message = f"token id {block[at]} is not in the vocabulary of {vocab_size}"
            offset = (start + int(at)) * dataset.dtype.itemsize
            found.append(Violation(dataset.bin_path, offset, message))
        if len(found) == _LIMIT:
            break
    return found


def _check_counts(dataset: TokenDataset, manifest: Manifest) -> list[Violation]:
    pairs = (
        (17, "dtype", dataset.dtype.name, manifest.dtype),
        (18, "tokens", dataset.num_tokens, manifest.num_tokens),
        (26, "documents", dataset.num_documents, manifest.num_documents),
    )
    return [
        Violation(dataset.index_path, offset, f"{what}: the manifest says {said}, got {found}")
        for offset, what, found, said in pairs
        if found != said
    ]


def _check_digests(dataset: TokenDataset, manifest: Manifest) -> list[Violation]:
    found = []
    for name in DATA_FILES:
        path = dataset.prefix.with_name(name)
        if FileRecord.of(path) != manifest.files.get(name):
            message = "the file is not the one that was prepared (its digest differs)"
            found.append(Violation(path, 0, message))
    return found
