"""Say what the environment will hold, or why it cannot be made here.

Runs on whatever Python the user has, so it keeps to the standard library and to old syntax.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

OLDEST = (3, 11)
NEWEST = (3, 14)
DISK_GIB = 2


def find_problem(venv: str) -> str | None:
    """One paragraph about what stands in the way, or None."""
    version = sys.version_info[:2]
    if version < OLDEST:
        found = [f"python3.{n}" for n in range(OLDEST[1], NEWEST[1] + 1)]
        found = [name for name in found if shutil.which(name)] or ["/path/to/python3.11"]
        return (
            f"{sys.executable}: mtron needs Python {dotted(OLDEST)} or newer, got "
            f"{dotted(version)}; name a newer one, for example: make PYTHON={found[0]}"
        )
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        return (
            f"{sys.executable}: this Python comes without the venv module; install it (on Debian "
            f"and Ubuntu the package python3-venv) or name another Python: make PYTHON=..."
        )
    old = version_of(venv)
    if old not in (None, dotted(version)):
        return (
            f"{venv}: made for Python {old}, but {sys.executable} is {dotted(version)}; "
            f"run `make clean` first or name the old one: make PYTHON=python{old}"
        )
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if old is None and free < DISK_GIB:
        return f"{Path.cwd()}: mtron needs {DISK_GIB} GiB of disk, got {free:.1f}; free some space"
    return None


def dotted(version: tuple[int, ...]) -> str:
    """(3, 11) as "3.11"."""
    return ".".join(str(part) for part in version)


def version_of(venv: str) -> str | None:
    """The Python version, as "3.11", that an existing environment was made for, or None."""
    config = Path(venv, "pyvenv.cfg")
    if not config.is_file():
        return None
    pairs = [line.split("=", 1) for line in config.read_text().splitlines() if "=" in line]
    values = {key.strip(): value.strip() for key, value in pairs}
    return ".".join(values.get("version", "").split(".")[:2])


def announce(venv: str) -> None:
    """Print what is about to be installed, how large it is and how long it takes."""
    version = dotted(sys.version_info[:2])
    print(
        f"Creating {venv} with Python {version} and installing the eight mtron\n"
        "packages and what they need: about 75 packages, 0.3 GB to download, 1.3 GB on disk,\n"
        "half a minute on a fast connection. Nothing else changes, except pip's cache."
    )
    if sys.platform == "linux":
        print(
            "Where pip gets torch's CUDA build, the default on Linux, it is several gigabytes\n"
            "instead; README.md says how to get the CPU build."
        )
    sys.stdout.flush()


def main() -> None:
    """Check, then announce; exit with a message when the environment cannot be made."""
    venv = sys.argv[1]
    problem = find_problem(venv)
    if problem:
        sys.exit(problem)
    if not Path(venv, "installed-runtime").exists():
        announce(venv)


if __name__ == "__main__":
    main()
