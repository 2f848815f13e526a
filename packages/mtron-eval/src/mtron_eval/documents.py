"""Reads texts to be scored: JSON lines or plain text files."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtron_data import Source, find_sources


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        text: the text itself.
        source: the data file that it came from.
        line: its line in that file, counted from 1; None for a plain text file.
        path: where the text was found originally, if the data says so.
        domain: a group for which totals are wanted, if the data says so.
    """

    text: str
    source: str
    line: int | None = None
    path: str | None = None
    domain: str | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.source if self.line is None else f"{self.source}: line {self.line}"

    @property
    def num_bytes(self) -> int:
        """Length of the text in UTF-8."""
        return len(self.text.encode())


@dataclass(frozen=True)
class DataFile:
    """A data file that was read.

    Attributes:
        path: the file.
        num_bytes: its size.
        sha256: hash of its content.
        documents: what it holds, in order.
    """

    path: str
    num_bytes: int
    sha256: str
    documents: tuple[Document, ...]


def read_documents(paths: Sequence[str | Path]) -> list[DataFile]:
    """Reads data files.

    Files are found by the rules of `mtron_data.find_sources`: one that ends in `.jsonl`,
    `.ndjson` or `.json` holds one JSON object per line, with the string `text` and, optionally,
    the strings `path` and `domain`; further keys are ignored. Any other file is one text.

    Args:
        paths: files, folders or patterns.

    Raises:
        ValueError: naming the file, the line and the remedy.
        OSError: if a file cannot be read.
    """
    files = [_read_file(source) for source in find_sources(paths)]
    if not any(document.text for file in files for document in file.documents):
        names = ", ".join(file.path for file in files)
        raise ValueError(f"{names}: holds no text; give a file with at least one document")
    return files


def _read_file(source: Source) -> DataFile:
    path, content = str(source.path), source.path.read_bytes()
    if source.kind == "jsonl":
        documents = tuple(_json_lines(path, content))
    else:
        documents = (Document(text=_decode(content, path), source=path),)
    return DataFile(path, len(content), hashlib.sha256(content).hexdigest(), documents)


def _json_lines(source: str, content: bytes) -> Iterator[Document]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{source}: line {number}"
        try:
            record = json.loads(_decode(line, where))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"{where}: not valid JSON, got {error}; every line must be an object like "
                '{"text": "..."}'
            ) from error
        yield _document(record, source, number)


def _document(record: Any, source: str, line: int) -> Document:
    where = f"{source}: line {line}"
    if not isinstance(record, dict):
        raise ValueError(
            f"{where}: must be a JSON object, got {type(record).__name__}; "
            'write it as {"text": "..."}'
        )
    if "text" not in record:
        keys = ", ".join(map(str, record)) or "none"
        raise ValueError(f"{where}: text: missing, got the keys {keys}; name the text `text`")
    for key in ("text", "path", "domain"):
        value = record.get(key)
        if not isinstance(value, str) and (key == "text" or value is not None):
            raise ValueError(f"{where}: {key}: must be a string, got {value!r}")
    text = record["text"]
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: text: not valid Unicode, got a lone surrogate at character "
            f"{error.start}; remove or replace it"
        ) from error
    return Document(text, source, line, record.get("path"), record.get("domain"))


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: not UTF-8, got {content[error.start : error.start + 1]!r} at byte "
            f"{error.start}; convert the file to UTF-8"
        ) from error
