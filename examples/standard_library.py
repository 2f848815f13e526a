"""Collect the Python sources of the installed standard library as a small corpus of real text.

    python examples/standard_library.py OUTPUT_DIR

writes OUTPUT_DIR/train.jsonl and OUTPUT_DIR/heldout.jsonl, one file of the library per line:
{"text": ..., "path": ...}. About one file in twenty, chosen by a hash of its path, is held out
whole, so that what is measured on it was never seen in training. No network, no dependencies.
"""

import argparse
import hashlib
import json
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SKIPPED_DIRECTORIES = {
    "__pycache__",
    "dist-packages",
    "idle_test",
    "site-packages",
    "test",
    "tests",
}
# What an administrator or the build wrote for this one machine.
SKIPPED_FILES = {"sitecustomize.py", "usercustomize.py"}
SKIPPED_PREFIX = "_sysconfigdata"
HELDOUT_PERCENT = 5
# The library holds about 12 MB; an installation with less than this has only a few files of it.
LEAST_BYTES = 4_000_000


def collect(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the path (relative to `root`, forward slashes) and the text of each source file."""
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        skipped = path.name in SKIPPED_FILES or path.name.startswith(SKIPPED_PREFIX)
        if skipped or SKIPPED_DIRECTORIES.intersection(relative.parts) or path.is_symlink():
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if text:
            yield relative.as_posix(), text


def is_heldout(path: str) -> bool:
    """Decide by the path alone, so that every machine and every run decides alike."""
    digest = hashlib.blake2b(path.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 100 < HELDOUT_PERCENT


def split(documents: Iterator[tuple[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Sort the documents into `train` and `heldout`."""
    parts: dict[str, list[dict[str, str]]] = {"train": [], "heldout": []}
    for path, text in documents:
        parts["heldout" if is_heldout(path) else "train"].append({"text": text, "path": path})
    return parts


def check(parts: Mapping[str, list[dict[str, str]]], root: Path) -> None:
    """Refuse an installation without (most of) the sources.

    Raises:
        ValueError: with the remedy.
    """
    found = sum(num_bytes(documents) for documents in parts.values())
    if found >= LEAST_BYTES and all(parts.values()):
        return
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    zipped = [path for path in sys.path if path.endswith(".zip") and Path(path).is_file()]
    where = f" (it is zipped in {zipped[0]})" if zipped else ""
    raise ValueError(
        f"{root}: the standard library's sources are not there{where}: found {found:,} bytes of "
        f"text, at least {LEAST_BYTES:,} are needed; use a Python installed with its sources: on "
        f"Debian and Ubuntu `sudo apt install libpython{version}-stdlib`, with conda `conda "
        f"install --force-reinstall python={version}`, with pyenv `pyenv install --force "
        f"{version}`, and run this again with it"
    )


def num_bytes(documents: Sequence[Mapping[str, str]]) -> int:
    """Return the size of the texts in UTF-8."""
    return sum(len(document["text"].encode("utf-8")) for document in documents)


def write_jsonl(documents: Sequence[Mapping[str, str]], path: Path) -> None:
    """Write one document per line; the file appears under its name when it is whole."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            for document in documents:
                file.write(json.dumps(document, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, or 1 with one paragraph on standard error."""
    parser = argparse.ArgumentParser(
        description="Write the Python standard library's sources as train.jsonl and heldout.jsonl.",
        epilog="example: python examples/standard_library.py runs/corpus",
    )
    parser.add_argument("output_dir", type=Path, help="directory for the two files")
    output = parser.parse_args(arguments).output_dir
    root = Path(sysconfig.get_paths()["stdlib"])
    try:
        parts = split(collect(root))
        check(parts, root)
        output.mkdir(parents=True, exist_ok=True)
        for name, documents in parts.items():
            write_jsonl(documents, output / f"{name}.jsonl")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    counts = "; ".join(
        f"{name}.jsonl {len(documents)} files, {num_bytes(documents):,} bytes"
        for name, documents in parts.items()
    )
    print(f"{output}: {counts} (from {root})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
