"""What the tools know about this repository: its files, its packages and their time budgets."""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Seconds of CPU time that a package's fast tests may take.
BUDGETS = {
    "mtron-parallel": 90,
    "mtron-models": 110,
    "mtron-ckpt": 80,
    "mtron-data": 80,
    "mtron-train": 90,
    "mtron-infer": 80,
    "mtron-optim": 50,
    "mtron-eval": 40,
    "cross-package": 180,
}
PACKAGES = tuple(name for name in BUDGETS if name.startswith("mtron-"))
CHECK_BUDGET = 60


def list_files(*suffixes: str) -> list[Path]:
    """Files of the project, tracked or new but not ignored, that end in one of the suffixes.

    Paths are relative to the root. Without git (an unpacked archive) every file outside hidden
    directories counts.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        paths = [Path(name) for name in listed.stdout.split("\0") if name]
    else:
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        paths = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    return sorted(
        path
        for path in set(paths)
        if (ROOT / path).is_file() and (not suffixes or path.suffix in suffixes)
    )


def import_name(package: str) -> str:
    """The import name of a distribution: mtron_ckpt for mtron-ckpt."""
    return package.replace("-", "_")


def public_names(module: str) -> frozenset[str]:
    """The names in `__all__` of one of the eight packages, read without importing it."""
    init = ROOT / "packages" / module.replace("_", "-") / "src" / module / "__init__.py"
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            return frozenset(ast.literal_eval(node.value))
    return frozenset()
