"""What the project's Markdown files tell the reader to run."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from repository import ROOT, list_files

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>```+)(?P<info>[^`]*)$")
ASSIGNMENT = re.compile(r"^[A-Z_]+=")
COMMAND = re.compile(r"(?:pip|make|python3?|mtron-(?:ckpt|data|eval|infer|train)|\.venv/bin/\w+) ")
SHELLS = ("sh", "bash", "shell", "console")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    line: int
    """Line number of its first line of code."""
    info: str
    """What stands after the opening ticks: "python", "sh", ..."""
    code: str


def list_documents() -> list[Path]:
    """Markdown files that explain how to use the project, relative to the root."""
    return [path for path in list_files(".md") if path.name != "CHANGELOG.md"]


def read_blocks(path: Path) -> Iterator[Block]:
    """The fenced blocks of a file in order, without their indentation."""
    opening = None
    start = 0
    lines: list[str] = []
    for number, line in enumerate((ROOT / path).read_text("utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if opening is None and fence:
            opening, start, lines = fence, number + 1, []
        elif opening is None:
            continue
        elif fence and not fence["info"] and fence["ticks"] == opening["ticks"]:
            yield Block(start, opening["info"].strip(), "\n".join([*lines, ""]))
            opening = None
        else:
            lines.append(line.removeprefix(opening["indent"]))
    if opening is not None:
        raise ValueError(f"{path}:{start}: this fenced block is not closed; add {opening['ticks']}")


def read_commands(block: Block) -> Iterator[list[str]]:
    """The commands of a shell block as argument lists, without assignments and redirections.

    In a `console` block only lines after a `$ ` prompt are commands.
    """
    lines = block.code.replace("\\\n", " ").splitlines()
    if block.info == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in lines:
        words: list[str] = []
        for word in [*split(line), ";"]:
            if not set(word) <= set("|&;()<>"):
                words.append(word)
                continue
            while words and ASSIGNMENT.match(words[0]):
                words = words[1:]
            if words:
                yield words
            words = []


def is_shell(block: Block) -> bool:
    """Whether a block holds shell commands: by its label or, without one, by how it begins."""
    return block.info in SHELLS or (not block.info and bool(COMMAND.match(block.code)))


def split(line: str) -> list[str]:
    """Words and operators of one shell line; a `#` starts a comment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    return list(lexer)
