"""`make test`: each package's tests in their own process, side by side, within time budgets.

A budget is CPU time (of the process and its children), because the clock on the wall also counts
what else the machine does. A suite that takes three times its budget on the wall is stopped.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from processes import Finished, default_workers, run, side_by_side
from repository import BUDGETS, ROOT

NUM_SHARES = 6
SLOW_LIMIT_SECONDS = 3600
NO_TESTS_COLLECTED = 5
ROW = "{:15}{:>8}{:>8}{:>9}{:>9}{:>9}{:>9}"


@dataclass(frozen=True)
class Suite:
    """One pytest process."""

    name: str
    selection: list[str]
    """Options that select the tests."""
    budget_seconds: float | None
    """CPU time allowed; None for slow tests, which have no budget."""


@dataclass(frozen=True)
class Outcome:
    """What one suite did."""

    suite: Suite
    finished: Finished
    passed: int
    failed: int
    skipped: int
    slowest: list[tuple[float, str]]
    """(seconds, test) of the slowest three."""

    @property
    def over_budget(self) -> bool:
        """Whether the suite was stopped or took more CPU time than its budget."""
        budget = self.suite.budget_seconds
        return self.finished.timed_out or (
            budget is not None and self.finished.cpu_seconds > budget
        )


def run_suite(suite: Suite) -> Outcome:
    """Run one suite, print its row, and everything it said when something is wrong."""
    folder = ROOT / "tests" if suite.name == "cross-package" else ROOT / "packages" / suite.name
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.xml")
        finished = run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                *(f"--junitxml={report}", *suite.selection),
                folder if folder.name == "tests" else folder / "tests",
            ],
            cwd=ROOT,
            timeout_seconds=3 * suite.budget_seconds
            if suite.budget_seconds
            else SLOW_LIMIT_SECONDS,
            environment={"OMP_NUM_THREADS": "1"},
        )
        outcome = read_report(suite, finished, report)
    text = describe(outcome)
    if outcome.failed or outcome.over_budget:
        text = f"{finished.output.rstrip()}\n{text}"
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    return outcome


def read_report(suite: Suite, finished: Finished, report: Path) -> Outcome:
    """Counts from pytest's report. A run that ended otherwise counts as one failure at least."""
    passed = failed = skipped = 0
    slowest: list[tuple[float, str]] = []
    if report.is_file():
        root = ElementTree.parse(report).getroot()
        for totals in root.iter("testsuite"):
            failed += int(totals.get("failures", 0)) + int(totals.get("errors", 0))
            skipped += int(totals.get("skipped", 0))
            passed += int(totals.get("tests", 0))
        passed = max(0, passed - failed - skipped)
        cases = [
            (float(case.get("time", 0)), case.get("name", "")) for case in root.iter("testcase")
        ]
        slowest = sorted(cases, reverse=True)[:3]
    empty_share = finished.returncode == NO_TESTS_COLLECTED and suite.budget_seconds is None
    if finished.returncode != 0 and not empty_share:
        failed = max(failed, 1)
    return Outcome(suite, finished, passed, failed, skipped, slowest)


def describe(outcome: Outcome) -> str:
    """The row of a suite and, when it is over its budget, what took the time."""
    budget = outcome.suite.budget_seconds
    row = ROW.format(
        outcome.suite.name,
        outcome.passed,
        outcome.failed,
        outcome.skipped,
        f"{outcome.finished.wall_seconds:.1f}",
        f"{outcome.finished.cpu_seconds:.1f}",
        "-" if budget is None else f"{budget:.0f}",
    )
    if not outcome.over_budget:
        return row
    slowest = ", ".join(f"{name} {seconds:.1f} s" for seconds, name in outcome.slowest)
    return f"{row}  OVER BUDGET, slowest: {slowest}"


def choose_share(wanted: str) -> int:
    """The share to run, 1 to 6, from "K/6" or, for "auto", from the commit's hash."""
    if wanted == "auto":
        command = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return int(commit.stdout, 16) % NUM_SHARES + 1
    number, _, count = wanted.partition("/")
    valid = {str(k): k for k in range(1, NUM_SHARES + 1)}
    if count != str(NUM_SHARES) or number not in valid:
        raise SystemExit(f"--slow-share: expected auto or K/{NUM_SHARES}, got {wanted!r}")
    return valid[number]


def plan_suites(names: list[str], slow: bool, share: int | None) -> list[Suite]:
    """The suites to run, those with the largest budget first so that the last ones are short."""
    order = sorted(names, key=lambda name: -BUDGETS[name])
    if share is not None:
        # Each suite starts counting elsewhere, so that small suites do not all fall on one share.
        shares = {name: (share + place) % NUM_SHARES + 1 for place, name in enumerate(order)}
        return [
            Suite(name, ["-m", "slow and not gpu", f"--share={shares[name]}/{NUM_SHARES}"], None)
            for name in order
        ]
    if slow:
        return [Suite(name, ["-m", "slow and not gpu"], None) for name in order]
    return [Suite(name, ["-m", "not slow and not gpu"], BUDGETS[name]) for name in order]


def main() -> None:
    """Run the suites asked for; exit 1 when a test failed or a budget was exceeded."""
    parser = argparse.ArgumentParser(description="Run the tests of all or some packages.")
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"of {', '.join(BUDGETS)}; default all"
    )
    parser.add_argument("--slow", action="store_true", help="the slow tests, which have no budget")
    parser.add_argument(
        "--slow-share", metavar="K/6", help="a sixth of the slow tests; auto: by the commit"
    )
    options = parser.parse_args()
    unknown = sorted(set(options.suites) - set(BUDGETS))
    if unknown:
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(BUDGETS)}")
    share = choose_share(options.slow_share) if options.slow_share else None
    if share is not None:
        print(f"slow tests, share {share} of {NUM_SHARES}")
    start = time.monotonic()
    print(ROW.format("", "passed", "failed", "skipped", "wall s", "cpu s", "budget s"))
    suites = plan_suites(options.suites or list(BUDGETS), options.slow, share)
    outcomes = list(side_by_side(run_suite, suites, num_workers=default_workers()))
    print(f"tests took {time.monotonic() - start:.0f} s")
    late = [outcome.suite.name for outcome in outcomes if outcome.over_budget]
    if late:
        print(f"over budget: {', '.join(late)}")
    failed = sum(outcome.failed for outcome in outcomes)
    print(f"{sum(outcome.passed for outcome in outcomes)} passed, {failed} failed")
    sys.exit(bool(failed or late))


if __name__ == "__main__":
    main()
