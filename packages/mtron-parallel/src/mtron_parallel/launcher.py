"""Start the processes of a job on this machine, and end them together. Imports no torch.

torch's elastic agent does the same and more, but it needs torch in the parent (seconds before the
first message), gives the processes 30 seconds after Ctrl-C where saving a checkpoint may take
longer, and does not say where a rank was that failed.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mtron_parallel.failures import (
    ALIVE,
    DIRECTORY,
    INTERRUPTED,
    Ending,
    describe,
    first_failure,
    has_reported,
    read_failure,
    read_place,
)

_POLL_SECONDS = 0.05
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h\n"
"""A process killed while it updates a line on a terminal leaves that line, and no cursor."""


def launch(command: Sequence[str], nproc: int, *, grace_seconds: float = 2.0) -> int:
    """Run `nproc` processes of a command as the ranks of one job, and wait for all of them.

    Each gets `RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `LOCAL_WORLD_SIZE`, `MASTER_ADDR` and
    `MASTER_PORT` as torchrun sets them, unless set `OMP_NUM_THREADS` (its share of the cores) and
    `TORCH_CPP_LOG_LEVEL=ERROR`, and this process's standard input and output. It should call
    `die_with_parent` first, and work inside `report_failures`.

    SIGINT and SIGTERM are passed on to every process once, and then they have all the time they
    need to save and leave; a second signal kills them. When one fails, the others have
    `grace_seconds` to end by themselves; then they are killed, together with what they have
    started. One paragraph on standard error says which rank failed first, why and where.

    Must be called from the main thread.

    Args:
        command: program and arguments.
        nproc: number of processes.
        grace_seconds: how long the others may go on after the first failure.

    Returns:
        0 when all processes returned 0, 130 when they were interrupted and left with that code; the
        exit code of the rank that failed first, 128 + n when signal n ended it.

    Raises:
        ValueError: `nproc` is less than 1.
        OSError: the command cannot be started.
    """
    if nproc < 1:
        raise ValueError(f"nproc: a job has at least one process, got {nproc}; use 1 or more")
    with (
        tempfile.TemporaryDirectory(prefix="mtron-", ignore_cleanup_errors=True) as name,
        _alive(Path(name)),
        _reserved_port() as port,
        _noted_signals() as signals,
    ):
        processes = _Processes(Path(name))
        try:
            processes.start(command, nproc, port)
            processes.wait(signals, grace_seconds)
        finally:
            processes.kill()
        return _conclude(processes.endings(), signals)


@dataclass
class _Process:
    """One rank."""

    rank: int
    handle: subprocess.Popen[bytes]
    ended: float | None = None
    """When, on the monotonic clock."""
    stopped: bool = False
    """Whether it was killed by this launcher."""


class _Processes:
    """The ranks of a job.

    Args:
        directory: through which they report.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: list[_Process] = []

    def start(self, command: Sequence[str], nproc: int, port: int) -> None:
        """Start all of them."""
        shared = {
            "WORLD_SIZE": str(nproc),
            "LOCAL_WORLD_SIZE": str(nproc),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            DIRECTORY: str(self._directory),
        }
        defaults = {
            "OMP_NUM_THREADS": str(max(1, _num_cores() // nproc)),
            # torch's own report of a lost connection takes a page of each rank.
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        for rank in range(nproc):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # In a session of its own a process gets a terminal's Ctrl-C only from here, once.
            handle = subprocess.Popen(
                command, env={**defaults, **os.environ, **shared, **own}, start_new_session=True
            )
            self._processes.append(_Process(rank, handle))

    def wait(self, signals: list[int], grace_seconds: float) -> None:
        """Wait for all to end; kill those that remain after a failure or a second signal."""
        passed_on = False
        deadline: float | None = None
        while running := self._running():
            if signals and not passed_on:
                passed_on = True
                for process in running:
                    process.handle.send_signal(signals[0])
            if deadline is None and self._has_failure():
                deadline = time.monotonic() + grace_seconds
            if len(signals) > 1 or (deadline is not None and time.monotonic() > deadline):
                self.kill()
            time.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """Kill all that still run, and what they have started; return when they are dead."""
        for process in self._running():
            process.stopped = True
            _kill_group(process.handle.pid)
            process.handle.wait()
        self._running()

    def endings(self) -> list[Ending]:
        """Return how each has ended."""
        return [
            Ending(
                process.rank,
                process.handle.returncode,
                process.ended or 0.0,
                process.stopped,
                read_failure(self._directory, process.rank),
                read_place(self._directory, process.rank),
            )
            for process in self._processes
        ]

    def _running(self) -> list[_Process]:
        """Return those that run; of those that do no longer, note the time and end the rest."""
        for process in self._processes:
            if process.ended is None and process.handle.poll() is not None:
                process.ended = time.monotonic()
                # At once: later the number may be another group's.
                _kill_group(process.handle.pid)
        return [process for process in self._processes if process.ended is None]

    def _has_failure(self) -> bool:
        """Whether one has failed, also when it has said so and does not come to its end."""
        return any(
            process.handle.returncode not in (None, 0, INTERRUPTED)
            or has_reported(self._directory, process.rank)
            for process in self._processes
        )


def _conclude(endings: Sequence[Ending], signals: Sequence[int]) -> int:
    """Return the exit code, and print what has failed."""
    if any(ending.stopped for ending in endings) and sys.stderr.isatty():
        sys.stderr.write(_SHOW_CURSOR)
    first = first_failure(endings)
    if len(signals) > 1:
        return 128 + signals[1]
    if first is None:
        return INTERRUPTED if any(ending.code == INTERRUPTED for ending in endings) else 0
    if signals and first.failure is None and first.code in (1, -signals[0]):
        return 128 + signals[0]  # it came before the process could handle it
    print(describe(first, endings), file=sys.stderr, flush=True)
    return first.exit_code


@contextmanager
def _alive(directory: Path) -> Iterator[None]:
    """Hold the pipe that tells the processes that their launcher lives."""
    path = directory / ALIVE
    os.mkfifo(path, 0o600)
    # Reading as well, because opening for writing alone waits for a reader.
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _reserved_port() -> Iterator[int]:
    """Yield a port that no program is given until rank 0 listens on it.

    The socket stays bound without listening. Both it and torch's store allow addresses to be used
    again, so that the store can bind as well; the system gives the port to nobody who asks for any.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Yield a list to which every SIGINT and SIGTERM is appended instead of ending this process."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill_group(leader: int) -> None:
    """Kill a process and its descendants; those that have left its group are not found."""
    with suppress(ProcessLookupError, PermissionError):  # macOS: only zombies are left
        os.killpg(leader, signal.SIGKILL)


def _num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
