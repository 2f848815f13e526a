"""Breaks the code in known ways and makes sure that tests notice: `tools/mutate.py [NAME ...]`.

Each mutation is made in a copy of one package's source, which then shadows the installed one, so
the working tree stays as it is. A mutation that no test notices is a failure; so are tests that
fail without any.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from repository import ROOT

TESTS_FAILED = 1
LIMIT_SECONDS = 600
OPTIONS = ("-q", "-x", "-p", "no:cacheprovider", "-m", "not slow")


@dataclass(frozen=True)
class Mutation:
    """A mistake that somebody could make."""

    name: str
    file: str
    """Relative to packages/."""
    before: str
    """Must be in the file exactly once."""
    after: str
    tests: tuple[str, ...]
    """Arguments of pytest; at least one of the tests must fail."""


PARALLEL = "mtron-parallel/src/mtron_parallel"
PARITY = "tests/parity/test_layouts.py"
MUTATIONS = (
    Mutation(
        "drop the sequence-parallel norm reduction",
        f"{PARALLEL}/model.py",
        "            found[name] = tensor\n",
        "            pass\n",
        (PARITY, "-k", "tp2-sp"),
    ),
    Mutation(
        "divide by the local token count",
        f"{PARALLEL}/model.py",
        "        counting = all_reduce(count, data)\n",
        "        counting = all_reduce(count.clone(), data)\n",
        (PARITY, "-k", "dp2"),
    ),
    Mutation(
        "count replicated parameters tp times in the norm",
        f"{PARALLEL}/model.py",
        "            if shard.placement.replica == 0:\n",
        "            if True:\n",
        (PARITY, "-k", "tp2"),
    ),
    Mutation(
        "seed dropout by rank",
        "mtron-train/src/mtron_train/batches.py",
        "RandomKey(seed=config.run.seed,",
        "RandomKey(seed=config.run.seed"
        " + (torch.distributed.get_rank() if torch.distributed.is_initialized() else 0),",
        (PARITY, "-k", "dp2"),
    ),
    Mutation(
        "write a replica twice",
        "mtron-ckpt/src/mtron_ckpt/shared_plan.py",
        "        return self.writer_of[block] == rank\n",
        "        return True\n",
        ("packages/mtron-ckpt/tests/test_several_writers.py", "-k", "stored_once"),
    ),
)


def mutate(mutation: Mutation, folder: Path) -> None:
    """Copy the source of the mutation's package into `folder` and break it there."""
    package, _, path = mutation.file.partition("/src/")
    shutil.copytree(ROOT / "packages" / package / "src", folder, dirs_exist_ok=True)
    file = folder / path
    text = file.read_text(encoding="utf-8")
    if text.count(mutation.before) != 1:
        raise SystemExit(
            f"{mutation.name}: packages/{mutation.file} has {text.count(mutation.before)} times "
            f"{mutation.before.strip()!r}; bring the mutation up to date"
        )
    file.write_text(text.replace(mutation.before, mutation.after), encoding="utf-8")


def run_tests(tests: tuple[str, ...], shadow: Path | None = None) -> subprocess.CompletedProcess:
    """Run pytest, with `shadow` in front of the installed packages."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if shadow is not None:
        environment["PYTHONPATH"] = str(shadow)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, *tests],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
    )


def main() -> None:
    """Try all mutations or those named; exit 1 when one was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a mutation's name")
    names = parser.parse_args().names
    chosen = [m for m in MUTATIONS if not names or any(name in m.name for name in names)]
    missed = []
    for tests in dict.fromkeys(mutation.tests for mutation in chosen):
        sound = run_tests(tests)
        if sound.returncode != 0:
            raise SystemExit(f"{' '.join(tests)} fails without a mutation:\n{sound.stdout}")
    for mutation in chosen:
        with tempfile.TemporaryDirectory() as folder:
            mutate(mutation, Path(folder))
            result = run_tests(mutation.tests, Path(folder))
        noticed = result.returncode == TESTS_FAILED
        reason = next((li for li in result.stdout.splitlines() if li.startswith("FAILED ")), "")
        verdict = "noticed" if noticed else "MISSED"
        print(f"{verdict:8}  {mutation.name}  {reason[:150]}", flush=True)
        if not noticed:
            missed.append(mutation.name)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} mutations were noticed")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
