"""`python tools/new_model.py NAME`: begin a model family, with tests that say what is to be done.

What it writes is a plain decoder that already runs. Each test of the new test file fails and names
the next step; CONTRIBUTING.md has the six steps.
"""

import argparse
import ast
import keyword
import re
import sys
from collections.abc import Callable
from pathlib import Path
from string import Template

from repository import ROOT

TEMPLATES = Path(__file__).resolve().parent / "scaffold"
MODELS = "packages/mtron-models/src/mtron_models"
FAMILIES = "packages/mtron-ckpt/src/mtron_ckpt/conversion/families"


def new_files(name: str) -> dict[str, str]:
    """What is written for a family: path from the root to the template's name."""
    return {
        f"{MODELS}/{name}/config.py": "config.py",
        f"{MODELS}/{name}/layout.py": "layout.py",
        f"{MODELS}/{name}/model.py": "model.py",
        f"{MODELS}/{name}/README.md": "README.md",
        f"{FAMILIES}/{name}.py": "table.py",
        f"tests/families/test_{name}_family.py": "test.py",
    }


def class_name(name: str) -> str:
    """The class of a family: NewModel for new_model."""
    return "".join(part.capitalize() for part in name.split("_"))


def find_problem(name: str, root: Path) -> str | None:
    """Why there can be no new family of this name, or None."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        return (
            f"NAME: must be the model_type of Hugging Face as a Python name, lower case with "
            f"underscores, got {name!r}; for example new_model"
        )
    known = _keys(root / MODELS / "registry.py", "FAMILIES")
    if name in known:
        return f"NAME: there is a family {name!r} already; the families are {', '.join(known)}"
    for path in (f"{MODELS}/{name}", f"{MODELS}/{name}.py", *new_files(name)):
        if (root / path).exists():
            return f"NAME: {path} is there already, got {name!r}; choose another name"
    return None


def write_family(name: str, root: Path) -> list[str]:
    """Write the files of a family and enter it where families are listed.

    Args:
        name: a new one.
        root: of the repository.

    Returns:
        The files written or changed, from the root.
    """
    words = {"name": name, "Class": class_name(name), "CONSTANT": name.upper()}
    written = {
        path: _sorted_imports(
            Template((TEMPLATES / f"{template}.txt").read_text("utf-8")).substitute(words)
        )
        for path, template in new_files(name).items()
    }
    written[f"{MODELS}/{name}/__init__.py"] = f'"""The {class_name(name)} family."""\n'
    changes: dict[str, Callable[[str, str], str]] = {
        f"{MODELS}/registry.py": enter_in_registry,
        f"{MODELS}/__init__.py": enter_in_package,
        f"{FAMILIES}/__init__.py": enter_in_converter,
    }
    for path, change in changes.items():
        written[path] = change((root / path).read_text("utf-8"), name)
    for path, text in written.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return list(written)


def enter_in_registry(text: str, name: str) -> str:
    """The registry with the family in it."""
    module, cls = f"mtron_models.{name}", class_name(name)
    entry = f'    "{name}": Family("{module}.config:{cls}Config", "{module}.model:{cls}"),'
    if len(entry) > 100:
        entry = (
            f'    "{name}": Family(\n'
            f'        "{module}.config:{cls}Config", "{module}.model:{cls}"\n    ),'
        )
    return _insert(text, r'    "(\w+)": Family\(', name, entry, r"\}")


def enter_in_package(text: str, name: str) -> str:
    """The package's names with the configuration among them."""
    config, module = f"{class_name(name)}Config", f"mtron_models.{name}.config"
    line = f"    from {module} import {config} as {config}"
    text = _insert(text, r"    from ([\w.]+) import \w+ as", module, line, r"\n__all__")

    def order(public: str) -> tuple[bool, str]:
        return public[0].islower(), public

    text = _insert(text, r'    "(\w+)",', config, f'    "{config}",', r"\]", order)
    return _insert(text, r'    "(\w+)": "', config, f'    "{config}": "{module}",', r"\}", order)


def enter_in_converter(text: str, name: str) -> str:
    """The converter's list of families with the family in it."""
    module, constant = f"mtron_ckpt.conversion.families.{name}", name.upper()
    line = f"from {module} import {constant}"
    text = _insert(text, r"from (mtron_ckpt\.[\w.]+) import", module, line, r"\n__all__")
    return _insert(text, r"        ([A-Z0-9_]+),", constant, f"        {constant},", r"    \)")


def _insert(
    text: str,
    pattern: str,
    key: str,
    line: str,
    end: str,
    order: Callable[[str], tuple[bool, str]] = lambda key: (False, key),
) -> str:
    """Insert a line among those that begin with `pattern`, by the order of its group.

    Where it is the last one, it comes before the first match of `end` after them.
    """
    matches = list(re.finditer(f"^{pattern}", text, re.MULTILINE))
    assert matches, f"no line like {pattern}"
    after = next((match for match in matches if order(match[1]) > order(key)), None)
    if after is not None:
        place = after.start()
    else:
        found = re.compile(f"^{end}", re.MULTILINE).search(text, matches[-1].end())
        assert found, f"no end {end}"
        place = found.start()
    return f"{text[:place]}{line}\n{text[place:]}"


def _sorted_imports(text: str) -> str:
    """Text with its imports of models in order, which depends on the family's name."""

    def in_order(match: re.Match[str]) -> str:
        lines = match[0].splitlines(keepends=True)
        return "".join(sorted(lines, key=lambda line: line.split()[1]))

    return re.sub(r"(?:^from mtron_models\.[^(\n]+\n)+", in_order, text, flags=re.MULTILINE)


def _keys(path: Path, name: str) -> list[str]:
    """The keys of a dict that a module assigns to `name`, read without importing it."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            assert isinstance(node.value, ast.Dict)
            return [ast.literal_eval(key) for key in node.value.keys if key is not None]
    raise AssertionError(f"{path} assigns no {name}")


def main() -> None:
    """Write a family, or say why not; exit 1 then."""
    parser = argparse.ArgumentParser(description="Begin a model family.")
    parser.add_argument("name", metavar="NAME", help="its model_type, such as new_model")
    name = parser.parse_args().name
    problem = find_problem(name, ROOT)
    if problem is not None:
        print(problem, file=sys.stderr)
        sys.exit(1)
    print("\n".join(write_family(name, ROOT)))
    print(f"next: pytest tests/families/test_{name}_family.py, which says what is to be done")


if __name__ == "__main__":
    main()
