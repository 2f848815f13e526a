"""`manifest.json`: what a prepared directory was made from."""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtron_data.text.sources import Source
from mtron_data.tokenizer.identity import TOKENIZER_JSON, fingerprint

MANIFEST = "manifest.json"
DATA_FILES = ("tokens.bin", "tokens.idx")

_HASH_BLOCK_BYTES = 1 << 20


class Record(BaseModel):
    """A part of the manifest: frozen, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class SourceRecord(Record):
    """One input file."""

    path: str
    """As it was found; where it lies does not matter for being up to date."""
    kind: Literal["jsonl", "text"]
    """One document per line, or one document."""
    num_bytes: int = Field(ge=0)
    """Size of the file."""
    digest: str
    """BLAKE2b over the BLAKE2b digests of its blocks of 1 MiB."""
    num_documents: int = Field(ge=0)
    """Documents taken from it."""

    def same_size(self, source: Source) -> bool:
        """Whether `source` has the kind and size recorded; its content may still differ."""
        return (self.kind, self.num_bytes) == (source.kind, source.num_bytes)


class TokenizerRecord(Record):
    """The tokenizer, whose files lie beside the manifest."""

    fingerprint: str
    """SHA-256 of the canonical form of tokenizer.json."""
    vocab_size: int = Field(gt=0)
    """One more than its largest id."""
    eos_id: int | None = Field(ge=0)
    """Its end-of-document token."""


class FileRecord(Record):
    """A file beside the manifest."""

    num_bytes: int = Field(ge=0)
    """Size of the file."""
    digest: str
    """BLAKE2b of the file."""

    @classmethod
    def of(cls, path: Path) -> "FileRecord":
        """Describe the file `path` by reading it."""
        digest = hashlib.blake2b(digest_size=20)
        with path.open("rb") as file:
            while block := file.read(_HASH_BLOCK_BYTES):
                digest.update(block)
        return cls(num_bytes=path.stat().st_size, digest=digest.hexdigest())


class Manifest(Record):
    """Everything that is known about a prepared dataset."""

    format: Literal[1] = 1
    """Version of this file's layout."""
    key: str
    """Key of the text in JSONL."""
    append_eos: bool
    """Whether every document that is not empty ends with the end-of-document token."""
    tokenizer: TokenizerRecord
    dtype: str
    """Type of a token, as numpy names it."""
    num_documents: int = Field(ge=0)
    """Documents, empty ones included."""
    num_empty_documents: int = Field(ge=0)
    """Documents without any token."""
    num_tokens: int = Field(ge=0)
    """Tokens, end-of-document tokens included."""
    text_bytes: int = Field(ge=0)
    """Size of all texts in UTF-8."""
    sources: list[SourceRecord]
    files: dict[str, FileRecord]
    """The two data files and tokenizer.json, by name."""

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Read a manifest.

        Raises:
            ValueError: it is damaged or of an unknown format.
            OSError: it cannot be read.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(
                f"{path}: {where or 'the file'} is not as `mtron-data prepare` writes it: "
                f"{first['msg']}; prepare the dataset again"
            ) from None

    def dump(self) -> bytes:
        """Return the bytes of the file."""
        return (json.dumps(self.model_dump(), indent=2, ensure_ascii=False) + "\n").encode()

    def has_files(self, directory: Path) -> bool:
        """Whether the data files are in `directory` with their sizes."""
        return all(
            (path := directory / name).is_file()
            and name in self.files
            and path.stat().st_size == self.files[name].num_bytes
            for name in DATA_FILES
        )

    def check_tokenizer_files(self, directory: Path) -> None:
        """Refuse a tokenizer in `directory` that is not the one recorded.

        Raises:
            ValueError: it is missing or another.
        """
        path = directory / TOKENIZER_JSON
        if not path.is_file():
            raise ValueError(
                f"{path}: is missing; copy the tokenizer that prepared this dataset there, or "
                "prepare it again"
            )
        if FileRecord.of(path) == self.files.get(TOKENIZER_JSON):
            return  # the common case, without parsing what may be many megabytes
        found = fingerprint(path.read_bytes(), path)
        if found != self.tokenizer.fingerprint:
            raise ValueError(
                f"{path}: is another tokenizer than the one that prepared this dataset, got "
                f"{found[:12]}, {directory / MANIFEST} says {self.tokenizer.fingerprint[:12]}; "
                "put the right one back or prepare the dataset again"
            )
