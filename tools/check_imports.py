"""Across packages only public names are used: those in `__all__` of the package's `__init__`.

The adapter modules named `torch_io` are public too. import-linter guards who may import whom; this
guards what is imported.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from repository import PACKAGES, ROOT, import_name, list_files, public_names

MODULES = frozenset(import_name(package) for package in PACKAGES)
ADAPTER = "torch_io"


def find_problems(
    source: str, own_package: str | None, names_of: Callable[[str], frozenset[str]]
) -> Iterator[tuple[int, str]]:
    """Yield (line, what is wrong) for each use of what another package does not export.

    Args:
        source: Python source of one file.
        own_package: import name of the package that the file belongs to, or None.
        names_of: gives the public names of a package by its import name.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            used = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            used = [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = [(node.value.id, node.attr)]
        else:
            continue
        for module, name in used:
            package, _, submodule = module.partition(".")
            if package not in MODULES or package == own_package:
                continue
            problem = judge(package, submodule, name, names_of)
            if problem:
                yield node.lineno, problem


def judge(
    package: str, submodule: str, name: str | None, names_of: Callable[[str], frozenset[str]]
) -> str | None:
    """What is wrong with using `package[.submodule][.name]` from outside, or None."""
    if submodule == ADAPTER or name == ADAPTER:
        return None
    if submodule:
        return f"{package}.{submodule} is private to {package}; import from {package} itself"
    public = names_of(package)
    if name is not None and name not in public and not name.startswith("__"):
        return f"{name} is not in {package}.__all__; use a public name or export it there"
    return None


def owner(path: Path) -> str | None:
    """Import name of the package that a file belongs to."""
    folder, _, rest = str(path).partition("/")
    return import_name(rest.split("/")[0]) if folder == "packages" else None


def main() -> None:
    """Check every Python file of the repository and exit 1 when something is wrong."""
    known = {module: public_names(module) for module in MODULES}
    problems = [
        f"{path}:{line}: {problem}"
        for path in list_files(".py")
        for line, problem in find_problems(
            (ROOT / path).read_text("utf-8"), owner(path), known.__getitem__
        )
    ]
    print("\n".join(problems) or "only public names are used across packages")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
