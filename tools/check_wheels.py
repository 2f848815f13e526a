"""`make wheels`: build every package, install each alone in a clean environment, try it there.

"Alone" means the wheel and what it declares: third-party packages at the versions of
constraints.txt, sibling packages only from the wheels just built. The trial is the script of the
same name in tools/smoke/ and `--help` of each console script.
"""

import argparse
import configparser
import shutil
import sys
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from packaging.metadata import Metadata

from processes import default_workers, run, side_by_side
from repository import PACKAGES, ROOT, import_name, list_files

DIST = ROOT / "dist"
WITHOUT_TORCH = ("mtron-ckpt", "mtron-data")
STEP_TIMEOUT_SECONDS = 900


class WheelError(Exception):
    """A package that could not be built, installed or used, with what was said about it."""


def execute(command: Sequence[str | Path], cwd: Path = ROOT) -> str:
    """Output of a command that must succeed; no Python path leads back into this checkout."""
    finished = run(
        command, cwd=cwd, timeout_seconds=STEP_TIMEOUT_SECONDS, environment={"PYTHONPATH": ""}
    )
    if finished.returncode != 0:
        raise WheelError(f"$ {' '.join(str(part) for part in command)}\n{finished.output.rstrip()}")
    return finished.output


def build_wheel(package: str) -> Path:
    """Build the source archive and from it the wheel, with the hatchling of constraints.txt."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = ROOT / "packages" / package
        execute([sys.executable, "-m", "build", "--no-isolation", "--outdir", scratch, folder])
        wheels = list(Path(scratch).glob("*.whl"))
        assert len(wheels) == 1, wheels
        check_contents(package, wheels[0])
        DIST.mkdir(exist_ok=True)
        for built in Path(scratch).iterdir():
            shutil.move(built, DIST / built.name)
    return DIST / wheels[0].name


def check_contents(package: str, wheel: Path) -> None:
    """The wheel holds every source file and no other, and metadata that is valid and agrees."""
    source = Path("packages", package, "src")
    project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text("utf-8"))
    project = project["project"]
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"{import_name(package)}-{project['version']}.dist-info"
        # Raises InvalidMetadata, with every fault, when an index would refuse it.
        metadata = Metadata.from_email(archive.read(f"{info}/METADATA"), validate=True)
        scripts = configparser.ConfigParser()
        if f"{info}/entry_points.txt" in names:
            scripts.read_string(archive.read(f"{info}/entry_points.txt").decode())
    expected = {str(path.relative_to(source)) for path in list_files() if source in path.parents}
    found = {name for name in names if not name.startswith(f"{info}/")}
    problems = [f"lacks {name}" for name in sorted(expected - found)]
    problems += [f"should not hold {name}" for name in sorted(found - expected)]
    if (metadata.name, str(metadata.version)) != (package, project["version"]):
        problems.append(f"is {metadata.name} {metadata.version}")
    if f"{import_name(package)}/py.typed" not in names:
        problems.append("lacks py.typed, so its types are not used")
    built = dict(scripts["console_scripts"]) if scripts.has_section("console_scripts") else {}
    if built != project.get("scripts", {}):
        problems.append(f"has the console scripts {built}")
    if problems:
        raise WheelError("\n".join(f"{wheel.name}: {problem}" for problem in problems))


def try_alone(package: str, wheels: dict[str, Path], scratch: Path) -> None:
    """Install one wheel into a new environment, then run its smoke test and its `--help`."""
    environment = scratch / package
    python = environment / "bin" / "python"
    execute([sys.executable, "-m", "venv", "--without-pip", environment])
    siblings = scratch / f"{package}.constraints.txt"
    siblings.write_text("".join(f"{name} @ {path.as_uri()}\n" for name, path in wheels.items()))
    pip = [sys.executable, "-m", "pip", "--python", python]
    execute(
        [
            *(*pip, "install", "-qq", "--no-compile"),
            *("-c", ROOT / "constraints.txt", "-c", siblings, wheels[package]),
        ]
    )
    if package in WITHOUT_TORCH and "\ntorch " in execute([*pip, "list"]):
        raise WheelError(f"{package}: installs torch, which it must do without")
    work = scratch / f"{package}-work"
    work.mkdir()
    execute([python, "-E", "-s", ROOT / "tools" / "smoke" / f"{import_name(package)[6:]}.py"], work)
    for script in sorted((environment / "bin").glob("mtron-*")):
        execute([script, "--help"], work)
    shutil.rmtree(environment)


def check_package(package: str, wheels: dict[str, Path], scratch: Path) -> bool:
    """Try one package and print how it went."""
    start = time.monotonic()
    try:
        try_alone(package, wheels, scratch)
    except WheelError as failure:
        print(f"{failure}\n{package:16}FAILED {time.monotonic() - start:6.1f} s", flush=True)
        return False
    print(f"{package:16}ok     {time.monotonic() - start:6.1f} s", flush=True)
    return True


def main() -> None:
    """Build all, then try all or some; exit 1 when one failed."""
    parser = argparse.ArgumentParser(description="Build the wheels, install each alone, try it.")
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help="default: all eight")
    chosen = parser.parse_args().packages or list(PACKAGES)
    unknown = sorted(set(chosen) - set(PACKAGES))
    if unknown:
        parser.error(f"no package {', '.join(unknown)}; there are {', '.join(PACKAGES)}")
    start = time.monotonic()
    try:
        built = side_by_side(build_wheel, PACKAGES, num_workers=default_workers())
        wheels = dict(zip(PACKAGES, built, strict=True))
    except WheelError as failure:
        sys.exit(f"{failure}\n0 passed, 1 failed")
    print(f"built {len(wheels)} wheels in {time.monotonic() - start:.0f} s, into {DIST.name}/")
    with tempfile.TemporaryDirectory() as scratch:
        verdicts = list(
            side_by_side(
                lambda package: check_package(package, wheels, Path(scratch)),
                chosen,
                num_workers=default_workers(),
            )
        )
    print(f"wheel check took {time.monotonic() - start:.0f} s")
    print(f"{sum(verdicts)} passed, {len(verdicts) - sum(verdicts)} failed")
    sys.exit(not all(verdicts))


if __name__ == "__main__":
    main()
