"""Run commands side by side and say what each one printed and what it took."""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
GRACE_SECONDS = 10


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    returncode: int
    output: str
    """Standard output and error, in the order written."""
    wall_seconds: float
    cpu_seconds: float
    """User and system time of the process and of the children it waited for."""
    timed_out: bool


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a command to its end and measure it.

    After `timeout_seconds` it is interrupted, so that pytest still prints what it has, and killed
    if that does not help. `environment` is added to this process's own.
    """
    with tempfile.TemporaryFile() as output:
        start = time.monotonic()
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        with time_limit(process.pid, timeout_seconds) as timed_out:
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_seconds = time.monotonic() - start
        output.seek(0)
        text = output.read().decode(errors="replace")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Finished(process.returncode, text, wall_seconds, cpu_seconds, timed_out.is_set())


@contextlib.contextmanager
def time_limit(pid: int, seconds: float) -> Iterator[threading.Event]:
    """Interrupt a process after some seconds, kill it a little later; the event says so."""
    reached = threading.Event()

    def stop(number: signal.Signals) -> None:
        reached.set()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    timers = [
        threading.Timer(seconds, stop, [signal.SIGINT]),
        threading.Timer(seconds + GRACE_SECONDS, stop, [signal.SIGKILL]),
    ]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield reached
    finally:
        for timer in timers:
            timer.cancel()


def side_by_side(
    work: Callable[[Job], Result], jobs: Iterable[Job], *, num_workers: int
) -> Iterator[Result]:
    """Results of `work(job)` in the order of the jobs, `num_workers` at a time.

    Ctrl-C reaches the commands themselves, which share the terminal; those not yet started are
    dropped.
    """
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            yield from pool.map(work, jobs)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise SystemExit("interrupted") from None


def default_workers() -> int:
    """One command per core, at most four because each may hold a gigabyte."""
    return min(4, os.cpu_count() or 1)
