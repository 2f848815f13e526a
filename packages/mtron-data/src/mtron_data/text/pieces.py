"""Cuts files into pieces that any process can read by itself, and reads the documents in one."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mtron_data.text.sources import Kind, Source

BLOCK_BYTES = 1 << 20
"""Size of the blocks over which files are hashed, and of the pieces of JSONL."""

_DIGEST_BYTES = 20


class Piece(NamedTuple):
    """A byte range of a source: the lines that begin in it, or the whole of a text file."""

    source: int
    path: Path
    kind: Kind
    start: int
    stop: int


@dataclass
class Documents:
    """The documents of a piece.

    Attributes:
        texts: in order.
        num_lines: lines that begin in the piece, blank ones included.
        digests: of the piece's blocks, joined.
        error: line (from 1, counted from the piece's first) and what is wrong with it; texts
            end before it.
    """

    texts: list[str]
    num_lines: int
    digests: bytes
    error: tuple[int, str] | None = None


def plan_pieces(
    sources: Sequence[Source], block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[Piece, ...]]:
    """Cut sources into groups of pieces of about `block_bytes`, in order.

    A text file is one piece however large, because it is one document. Digests of files are
    joined from those of pieces only with the default size.
    """
    group: list[Piece] = []
    size = 0
    for number, source in enumerate(sources):
        step = block_bytes if source.kind == "jsonl" else max(source.num_bytes, 1)
        for start in range(0, max(source.num_bytes, 1), step):
            stop = min(start + step, source.num_bytes)
            group.append(Piece(number, source.path, source.kind, start, stop))
            size += stop - start
            if size >= block_bytes:
                yield tuple(group)
                group, size = [], 0
    if group:
        yield tuple(group)


def read_piece(piece: Piece, key: str) -> Documents:
    """Read the documents of a piece.

    Args:
        piece: from `plan_pieces`.
        key: of the text in a line of JSONL.

    Raises:
        ValueError: the file has changed since the plan.
        OSError: it cannot be read.
    """
    with piece.path.open("rb") as file:
        before = b"\n"
        if piece.start:
            file.seek(piece.start - 1)
            before = file.read(1)
        block = file.read(piece.stop - piece.start)
        if len(block) != piece.stop - piece.start:
            raise ValueError(f"{piece.path}: became shorter while it was read; start again")
        digests = _digests(block)
        if piece.kind == "text":
            return _text(block, digests)
        first = 0 if before == b"\n" else block.find(b"\n") + 1
        if first == 0 and before != b"\n":
            return Documents([], 0, digests)
        rest = b"" if block.endswith(b"\n") else file.readline()
    lines = (block[first:] + rest).split(b"\n")
    if not lines[-1]:
        lines.pop()
    if piece.start == 0 and lines:
        lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
    return _jsonl(lines, key, digests)


def file_digest(digests: Sequence[bytes]) -> str:
    """Return the digest of a file from those of its pieces, in order."""
    return hashlib.blake2b(b"".join(digests), digest_size=_DIGEST_BYTES).hexdigest()


def source_digest(source: Source) -> str:
    """Return the digest of a file by reading it.

    Raises:
        OSError: it cannot be read.
    """
    with source.path.open("rb") as file:
        return file_digest([_digests(block) for block in iter(lambda: file.read(BLOCK_BYTES), b"")])


def _digests(data: bytes) -> bytes:
    view = memoryview(data)
    return b"".join(
        hashlib.blake2b(view[start : start + BLOCK_BYTES], digest_size=_DIGEST_BYTES).digest()
        for start in range(0, len(view), BLOCK_BYTES)
    )


def _text(block: bytes, digests: bytes) -> Documents:
    try:
        text = block.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = block.count(b"\n", 0, error.start) + 1
        return Documents([], line, digests, (line, _not_utf8(error)))
    return Documents([text], block.count(b"\n") + 1, digests)


def _jsonl(lines: Sequence[bytes], key: str, digests: bytes) -> Documents:
    texts = []
    for number, line in enumerate(lines, start=1):
        if line.isspace() or not line:
            continue
        try:
            texts.append(_document(line, key))
        except ValueError as error:
            return Documents(texts, len(lines), digests, (number, str(error)))
    return Documents(texts, len(lines), digests)


def _document(line: bytes, key: str) -> str:
    try:
        value: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(error)) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}; mend or remove the line") from None
    if not isinstance(value, dict):
        raise ValueError(f"must hold a JSON object, got {_shown(value)}; mend or remove the line")
    if key not in value:
        raise ValueError(
            f"has no key {key!r}, got {_shown(sorted(value))}; name the key of the text"
        )
    text = value[key]
    if not isinstance(text, str):
        raise ValueError(f"{key!r} must be a string, got {_shown(text)}; mend or remove the line")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{key!r} holds half a surrogate pair at character {error.start}; mend the line"
        ) from None
    return text


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"is not UTF-8 at byte {error.start}: {error.reason}; convert the file to UTF-8"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."
