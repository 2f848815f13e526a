"""The project's files hold no unfinished work, no path of one machine, no package-index host."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from repository import ROOT, list_files

# The patterns are written so that they do not match themselves.
PATTERNS = {
    "unfinished work; finish it or leave it out": r"\b(?:TO[D]O|FIX[M]E|XX[X]|HAC[K])\b",
    "path of one machine; make it relative or a parameter": (
        r"(?<![\w.~$}/-])/(?:wor[k]|roo[t]|hom[e]|User[s]|tm[p]|op[t])/\w"
    ),
    "host of a package index; leave the index to pip's configuration": (
        r"\b(?:pyp[i]\.org|pythonhoste[d]\.org|extra-index-ur[l])"
    ),
}


def find_problems(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, what is wrong) for each line that matches a pattern."""
    for number, line in enumerate(text.splitlines(), 1):
        for meaning, pattern in PATTERNS.items():
            match = re.search(pattern, line)
            if match:
                yield number, f"{match[0]!r}: {meaning}"


def read_text(path: Path) -> str:
    """The text of a file, empty for one that is not text."""
    data = (ROOT / path).read_bytes()
    return "" if b"\0" in data else data.decode("utf-8", errors="replace")


def main() -> None:
    """Check every file of the repository and exit 1 when something is wrong."""
    files = list_files()
    problems = [
        f"{path}:{number}: {problem}"
        for path in files
        for number, problem in find_problems(read_text(path))
    ]
    print("\n".join(problems) or f"{len(files)} files")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
