"""What the documents tell the reader to run exists and works."""

import functools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from documents import SHELLS, is_shell, list_documents, read_blocks, read_commands
from repository import ROOT

DOCUMENTS = [str(path) for path in list_documents()]
KNOWN_LANGUAGES = {"", "python", "python no-run", *SHELLS, "toml", "json", "text"}
COMMANDS = sorted(Path(sys.executable).parent.glob("mtron-*"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_blocks_run(document, tmp_path, monkeypatch):
    """Every python block of a document runs, in order, in one namespace and an empty directory."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in read_blocks(Path(document)):
        if block.info == "python":
            # Leading newlines make the line numbers of a traceback those of the document.
            source = "\n" * (block.line - 1) + block.code
            exec(compile(source, str(ROOT / document), "exec"), namespace)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_are_labelled(document):
    for block in read_blocks(Path(document)):
        where = f"{document}:{block.line}"
        assert block.info in KNOWN_LANGUAGES, f"{where}: label {block.info!r}"
        unlabelled_python = not block.info and block.code.startswith(("import ", "from "))
        assert not unlabelled_python, f"{where}: label it python, so that it is run"
        if block.info == "python no-run":
            assert block.code.startswith("# Not run: "), f"{where}: begin with `# Not run: why`"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_shell_commands_exist(document):
    problems = [
        f"{document}:{block.line}: {' '.join(words)}: {problem}"
        for block in read_blocks(Path(document))
        if is_shell(block)
        for words in read_commands(block)
        for problem in find_problems(words)
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_lead_somewhere(document):
    """Links and images of a document that point into the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / document).read_text("utf-8"))
    inside = [target.partition("#")[0] for target in targets if "://" not in target]
    missing = [
        target for target in inside if not (ROOT / document).parent.joinpath(target).exists()
    ]
    assert not missing


def test_console_scripts_are_installed():
    assert [path.name for path in COMMANDS] == [
        f"mtron-{name}" for name in ("ckpt", "data", "eval", "infer", "train")
    ]


def find_problems(words):
    """What a reader who types this command would stumble over."""
    command = Path(words[0]).name
    if command.startswith("mtron-"):
        yield from find_option_problems(command, words[1:])
    elif command == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        wanted = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
        yield from (f"the Makefile has no {target}" for target in sorted(wanted - targets))
    elif "pip" in words[:3] and "install" in words:
        yield from find_requirement_problems(words)
    for word in words:
        looks_like_ours = word.partition("/")[0] in {"examples", "tools", "docs"}
        if looks_like_ours and not (ROOT / word).exists():
            yield f"there is no {word}"


def find_option_problems(command, arguments):
    subcommand = [word for word in arguments[:1] if re.fullmatch("[a-z][a-z-]*", word)]
    text = help_text(command, *subcommand)
    for word in arguments:
        option = word.partition("=")[0]
        if re.fullmatch(r"--?[a-z][a-z-]*", option) and not re.search(
            rf"(?<![\w-]){option}(?![\w-])", text
        ):
            yield f"`{' '.join([command, *subcommand])} --help` does not know {option}"


def find_requirement_problems(words):
    """Packages and extras named in a pip command must exist."""
    for word in words:
        match = re.fullmatch(r"(?:packages/)?(mtron-[a-z]+)(?:\[(\w+)\])?", word)
        if not match:
            continue
        project = ROOT / "packages" / match[1] / "pyproject.toml"
        if not project.is_file():
            yield f"there is no package {match[1]}"
            continue
        extras = tomllib.loads(project.read_text())["project"].get("optional-dependencies", {})
        if match[2] and match[2] not in extras:
            yield f"{match[1]} has no extra {match[2]}"


@functools.cache
def help_text(command, *subcommand):
    """Output of `--help`, wide and without colour."""
    finished = subprocess.run(
        [Path(sys.executable).parent / command, *subcommand, "--help"],
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout
