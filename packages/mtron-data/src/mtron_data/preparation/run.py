"""`prepare`: raw text to a directory with tokens, tokenizer and manifest."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtron_data.indexed.dataset import TOKENS
from mtron_data.indexed.layout import token_dtype
from mtron_data.indexed.writer import IndexedWriter
from mtron_data.manifest import DATA_FILES, MANIFEST, FileRecord, Manifest, TokenizerRecord
from mtron_data.preparation.tally import Tally
from mtron_data.preparation.workers import Job, encode_groups
from mtron_data.publish import published_directory
from mtron_data.text.pieces import plan_pieces, source_digest
from mtron_data.text.sources import Source, find_sources
from mtron_data.tokenizer.huggingface import HuggingFaceTokenizer, load_tokenizer
from mtron_data.tokenizer.identity import FILES, TOKENIZER_JSON

Progress = Callable[[int, int], None]
"""Called now and then with the bytes read so far and in all."""


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made or found.

    Attributes:
        path: the directory.
        manifest: its manifest.
        up_to_date: whether it was there already, made from the same sources in the same way.
    """

    path: Path
    manifest: Manifest
    up_to_date: bool


def prepare(
    inputs: str | Path | Iterable[str | Path],
    tokenizer: str | Path | HuggingFaceTokenizer,
    output: str | Path,
    workers: int = 1,
    *,
    key: str = "text",
    append_eos: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Tokenize text files into a prepared dataset.

    The directory holds `tokens.bin` and `tokens.idx` (Megatron's format), the tokenizer's files
    and `manifest.json`. It does not depend on `workers`, appears under its name only when it is
    whole, and takes memory for the largest document times `workers`, not for the corpus.
    With several workers, a script must call this under `if __name__ == "__main__":`.

    Args:
        inputs: JSONL or plain text files, folders or patterns; see `find_sources`.
        tokenizer: a loaded one, or the path of one; see `load_tokenizer`.
        output: the directory to make.
        workers: processes that read and encode.
        key: of the text in a line of JSONL.
        append_eos: end every document that is not empty with the end-of-document token.
        overwrite: replace a prepared dataset made from other sources.
        progress: called with the bytes read so far and in all.

    Raises:
        ValueError: an input is missing, empty or malformed (file and line are named), the
            tokenizer has no end-of-document token, or `output` exists and is something else.
        OSError: a file cannot be read, or the disk is full.
    """
    if workers < 1:
        raise ValueError(f"workers: must be at least 1, got {workers}; use 1 or more processes")
    sources = find_sources(inputs)
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        tokenizer = load_tokenizer(tokenizer)
    if append_eos and tokenizer.eos_id is None:
        raise ValueError(
            f"{tokenizer.source}: names no end-of-document token; add `eos_token` to its "
            "tokenizer_config.json, or do not append one (append_eos=False, --no-eos)"
        )
    target = Path(os.path.abspath(output))  # noqa: PTH100  also resolves a trailing ".."
    run = _Run(sources, tokenizer, key, append_eos, workers, progress)
    existing = _found(target, overwrite=overwrite)
    if existing is not None and run.made(existing, target):
        return Prepared(target, existing, up_to_date=True)
    if existing is not None and not overwrite:
        raise ValueError(
            f"{output}: exists and was prepared from {run.difference(existing)}; choose another "
            "output, or replace it (overwrite=True, --overwrite)"
        )
    with published_directory(target, replace=overwrite) as directory:
        return Prepared(target, run.write(directory), up_to_date=False)


@dataclass(frozen=True)
class _Run:
    sources: Sequence[Source]
    tokenizer: HuggingFaceTokenizer
    key: str
    append_eos: bool
    workers: int
    progress: Progress | None

    @property
    def tokenizer_record(self) -> TokenizerRecord:
        tokenizer = self.tokenizer
        return TokenizerRecord(
            fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            eos_id=tokenizer.eos_id,
        )

    def made(self, manifest: Manifest, directory: Path) -> bool:
        """Whether this run would write what lies in `directory`; if it may, reads the sources."""
        pairs = list(zip(manifest.sources, self.sources, strict=False))
        return (
            manifest.key == self.key
            and manifest.append_eos == self.append_eos
            and manifest.tokenizer == self.tokenizer_record
            and self._same_tokenizer_files(directory)
            and len(manifest.sources) == len(self.sources)
            and manifest.has_files(directory)
            and all(record.same_size(source) for record, source in pairs)
            and all(record.digest == source_digest(source) for record, source in pairs)
        )

    def _same_tokenizer_files(self, directory: Path) -> bool:
        """Whether the tokenizer's other files, such as a chat template, are the same too."""
        paths = {name: directory / name for name in FILES if name != TOKENIZER_JSON}
        found = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
        return found == {name: data for name, data in self.tokenizer.files.items() if name in paths}

    def difference(self, manifest: Manifest) -> str:
        """Say what the dataset that `manifest` describes was made from instead."""
        if manifest.tokenizer != self.tokenizer_record:
            return f"another tokenizer ({manifest.tokenizer.fingerprint[:12]})"
        if (manifest.key, manifest.append_eos) != (self.key, self.append_eos):
            return f"key {manifest.key!r} with append_eos={manifest.append_eos}"
        return "other sources or another tokenizer_config.json, or its files are incomplete"

    def write(self, directory: Path) -> Manifest:
        """Write everything into `directory`."""
        dtype = token_dtype(self.tokenizer.vocab_size)
        eos_id = self.tokenizer.eos_id if self.append_eos else None
        job = Job(self.tokenizer.files, self.tokenizer.source, self.key, eos_id, dtype)
        tally = Tally(self.sources)
        with IndexedWriter(directory / TOKENS, dtype) as writer:
            for encoded in encode_groups(plan_pieces(self.sources), job, self.workers):
                tally.add(encoded)
                writer.add_documents(encoded.tokens, encoded.lengths)
                if self.progress is not None:
                    self.progress(tally.num_bytes, tally.total_bytes)
        if not writer.num_tokens:
            raise ValueError(f"{self.sources[0].path}: holds no text, nor does any other input")
        self.tokenizer.save(directory)
        manifest = Manifest(
            key=self.key,
            append_eos=self.append_eos,
            tokenizer=self.tokenizer_record,
            dtype=dtype.name,
            num_documents=writer.num_documents,
            num_empty_documents=tally.num_empty,
            num_tokens=writer.num_tokens,
            text_bytes=tally.text_bytes,
            sources=tally.records(),
            files={name: FileRecord.of(directory / name) for name in (*DATA_FILES, TOKENIZER_JSON)},
        )
        (directory / MANIFEST).write_bytes(manifest.dump())
        return manifest


def _found(target: Path, *, overwrite: bool) -> Manifest | None:
    """Return the manifest of an existing dataset; none if there is nothing or it is damaged."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    if not (target / MANIFEST).is_file():
        raise ValueError(
            f"{target}: exists and is no prepared dataset; choose another output, or remove it"
        )
    try:
        return Manifest.load(target / MANIFEST)
    except ValueError:
        if overwrite:
            return None
        raise
