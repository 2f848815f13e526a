"""`make check`: every static check, side by side, with its time."""

import sys
import time

from processes import Finished, default_workers, run, side_by_side
from repository import CHECK_BUDGET, PACKAGES, ROOT

BIN = ROOT / ".venv" / "bin"
# Named one by one: a pattern that matches nothing would pass unseen.
SOURCES = [*(f"packages/{package}/src" for package in PACKAGES), "tools", "examples"]
CHECKS = {
    "types": [BIN / "basedpyright", *SOURCES],
    "lint": [BIN / "ruff", "check", "--output-format=concise", "."],
    "format": [BIN / "ruff", "format", "--check", "--output-format=concise", "."],
    "layers": [BIN / "lint-imports"],
    "public names": [sys.executable, "tools/check_imports.py"],
    "size": [sys.executable, "tools/check_size.py"],
    "text": [sys.executable, "tools/check_text.py"],
}


def run_check(name: str) -> tuple[str, Finished]:
    """Run one check and print its line, and what it said when it failed."""
    finished = run(CHECKS[name], cwd=ROOT, timeout_seconds=3 * CHECK_BUDGET)
    verdict = "ok" if finished.returncode == 0 else "FAILED"
    line = f"{name:14}{verdict:8}{finished.cpu_seconds:6.1f} s\n"
    sys.stdout.write(line if verdict == "ok" else f"{line}{finished.output.rstrip()}\n")
    sys.stdout.flush()
    return name, finished


def main() -> None:
    """Run them all; exit 1 when one failed or all together took too long."""
    start = time.monotonic()
    results = dict(side_by_side(run_check, CHECKS, num_workers=default_workers()))
    failed = [name for name, finished in results.items() if finished.returncode != 0]
    cpu_seconds = sum(finished.cpu_seconds for finished in results.values())
    print(
        f"checks took {cpu_seconds:.1f} s of CPU (budget {CHECK_BUDGET} s), "
        f"{time.monotonic() - start:.1f} s of wall clock"
    )
    if cpu_seconds > CHECK_BUDGET:
        print("over budget: the checks")
    print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    sys.exit(bool(failed or cpu_seconds > CHECK_BUDGET))


if __name__ == "__main__":
    main()
