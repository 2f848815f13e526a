"""No Python file over 400 lines and no function over 60.

Exceptions stand in size_exceptions.toml, each with its reason.
"""

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping

from repository import ROOT, list_files

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
EXCEPTIONS = ROOT / "tools" / "size_exceptions.toml"


def measure(path: str, source: str) -> Iterator[tuple[str, int, int]]:
    """Yield (place, lines, limit) for a file and each of its functions and methods.

    A place is `path` or `path:Class.method`, which stays the same when lines move.
    """
    yield path, len(source.splitlines()), MAX_FILE_LINES
    yield from measure_functions(f"{path}:", ast.parse(source))


def measure_functions(prefix: str, node: ast.AST) -> Iterator[tuple[str, int, int]]:
    """The functions under a node, named by the classes and functions around them."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        name = f"{prefix}{child.name}" if named else prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, (child.end_lineno or child.lineno) - child.lineno + 1, MAX_FUNCTION_LINES
        yield from measure_functions(f"{name}." if named else prefix, child)


def find_problems(sources: Mapping[str, str], exceptions: Mapping[str, str]) -> list[str]:
    """One line per place that is too long without a reason, and per exception without a use."""
    too_long = {
        place: (lines, limit)
        for path, source in sources.items()
        for place, lines, limit in measure(path, source)
        if lines > limit
    }
    problems = [
        f"{place}: {lines} lines, at most {limit}; split it, or give a reason in {EXCEPTIONS.name}"
        for place, (lines, limit) in too_long.items()
        if place not in exceptions
    ]
    problems += [
        f"{EXCEPTIONS.name}: {place}: no longer needed; remove it"
        for place in exceptions
        if place not in too_long
    ]
    problems += [
        f"{EXCEPTIONS.name}: {place}: needs a reason in a full sentence"
        for place, reason in exceptions.items()
        if len(reason.split()) < 4
    ]
    return problems


def main() -> None:
    """Print the problems and exit 1 when there are any."""
    sources = {str(path): (ROOT / path).read_text("utf-8") for path in list_files(".py")}
    exceptions = tomllib.loads(EXCEPTIONS.read_text("utf-8"))["exceptions"]
    problems = find_problems(sources, exceptions)
    print("\n".join(problems) or f"{len(sources)} files, {len(exceptions)} exceptions")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
