"""From what the user named to the files that hold the documents."""

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["jsonl", "text"]

_JSONL = (".jsonl", ".ndjson", ".json")
# Without .json: in a folder that is more often a tokenizer or a manifest than a corpus.
_IN_FOLDERS = (".jsonl", ".ndjson", ".txt", ".text")
_UNREADABLE = (".gz", ".zst", ".bz2", ".xz", ".zip", ".parquet", ".arrow")


@dataclass(frozen=True)
class Source:
    """One input file.

    Attributes:
        path: where it is.
        kind: `jsonl` holds one document per line, `text` is one document.
        num_bytes: its size.
    """

    path: Path
    kind: Kind
    num_bytes: int


def find_sources(inputs: str | Path | Iterable[str | Path]) -> list[Source]:
    """Find the input files, in the order given; those of a folder or pattern in order of path.

    Args:
        inputs: files, folders (searched at any depth for .jsonl, .ndjson, .txt and .text files;
            hidden ones are left out) or patterns such as `texts/**/*.md`. Files ending in
            .jsonl, .ndjson or .json hold one document per line, any other is one document.

    Raises:
        ValueError: a file is missing, empty, named twice or of a kind that cannot be read, or
            nothing was found.
    """
    named = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not named:
        raise ValueError("inputs: no file is named; name JSONL or text files, folders or patterns")
    found: dict[Path, Source] = {}
    for name in named:
        for source in _expand(name):
            key = source.path.resolve()
            if key in found:
                raise ValueError(
                    f"{source.path}: is named twice, also as {found[key].path}; name each file once"
                )
            found[key] = source
    return list(found.values())


def _expand(name: str | Path) -> list[Source]:
    path = Path(name)
    if path.is_dir():
        return _folder(path)
    if path.exists():
        return [_source(path, single=True)]
    if not glob.has_magic(str(name)):
        raise ValueError(f"{name}: no such file or folder; check the path")
    matches = sorted(glob.glob(str(name), recursive=True))  # noqa: PTH207  Path.glob cannot be absolute
    files = [Path(match) for match in matches if Path(match).is_file()]
    if not files:
        raise ValueError(f"{name}: no file matches this pattern; check it, and quote it")
    return [_source(file, single=False) for file in files]


def _folder(path: Path) -> list[Source]:
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix in _IN_FOLDERS
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise ValueError(
            f"{path}: holds no {', '.join(_IN_FOLDERS)} file; name other text files by a "
            f"pattern such as '{path}/**/*.md'"
        )
    return [_source(file, single=False) for file in files]


def _source(path: Path, *, single: bool) -> Source:
    if path.suffix in _UNREADABLE:
        raise ValueError(
            f"{path}: {path.suffix} files are not read; give plain JSONL or text, decompressed"
        )
    num_bytes = path.stat().st_size
    # A folder of sources has empty files (think of __init__.py); one that was named must not be.
    if single and num_bytes == 0:
        raise ValueError(f"{path}: is empty; give a file with text")
    return Source(path, "jsonl" if path.suffix in _JSONL else "text", num_bytes)
