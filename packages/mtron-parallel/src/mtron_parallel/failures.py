"""Why the processes of a job ended, and which of them failed first. Imports no torch."""

import json
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path

DIRECTORY = "MTRON_LAUNCHER"
"""Environment variable: the directory through which a process and its launcher communicate."""
ALIVE = "alive"
"""A named pipe in it, whose writing end is open as long as the launcher lives."""
INTERRUPTED = 130
"""Exit code of a process that was asked to stop, and has."""

_TORCH_LOST = (
    "Connection closed",
    "Connection reset",
    "Connection refused",
    "Broken pipe",
    "remote process exited",
)
_TORCH_TIMEOUT = ("imed out", "imeout")


class Cause(IntEnum):
    """Why a process failed, by how likely that failed the others, least first."""

    LOST_PEER = 0
    """Another process has ended."""
    TIMEOUT = 1
    """Others did not come."""
    OWN = 2
    """Something of its own."""


@dataclass(frozen=True)
class Failure:
    """What a process says about its failure.

    Attributes:
        rank: of the process.
        cause: why it failed.
        message: for the user.
        place: where, such as `loader.py:123 in _read`.
        seconds: when, on the machine's monotonic clock.
    """

    rank: int
    cause: Cause
    message: str
    place: str | None
    seconds: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Ending:
    """How a process ended, as its launcher saw it.

    Attributes:
        rank: of the process.
        code: its exit code, the negative number of a signal that killed it.
        seconds: when it was seen, on the machine's monotonic clock.
        stopped: whether the launcher killed it.
        failure: what it said about it.
        place: where it was last.
    """

    rank: int
    code: int
    seconds: float
    stopped: bool = False
    failure: Failure | None = None
    place: str | None = None

    @property
    def has_failed(self) -> bool:
        """Whether it did not end as processes should: done, or stopped when asked to."""
        return self.code not in (0, INTERRUPTED)

    @property
    def order(self) -> tuple[int, float]:
        """Sorts failures: what made the others fail comes first."""
        if self.failure is None:
            return -Cause.OWN, self.seconds
        return -self.failure.cause, self.failure.seconds

    @property
    def exit_code(self) -> int:
        """The exit code that a shell would show."""
        if self.stopped:
            return 1
        return self.code if self.code >= 0 else 128 - self.code


def cause_of(error: BaseException) -> Cause:
    """Return why a process failed that raised `error`.

    Whoever lost a peer raises a ConnectionError, `PeerLost` for one, and whoever waited in vain a
    TimeoutError, such as `CollectiveTimeout`; what raises them need not know this package. torch
    has no types of its own for these; it raises RuntimeErrors that differ in their text.
    """
    if isinstance(error, ConnectionError):
        return Cause.LOST_PEER
    if isinstance(error, TimeoutError):
        return Cause.TIMEOUT
    if isinstance(error, RuntimeError):
        if any(sign in str(error) for sign in _TORCH_LOST):
            return Cause.LOST_PEER
        if any(sign in str(error) for sign in _TORCH_TIMEOUT):
            return Cause.TIMEOUT
    return Cause.OWN


def write_failure(directory: Path, failure: Failure) -> None:
    """Leave `failure` for the launcher."""
    _write(_failure_file(directory, failure.rank), json.dumps(asdict(failure)))


def write_place(directory: Path, rank: int, place: str) -> None:
    """Leave word where a process is."""
    _write(_place_file(directory, rank), place)


def has_reported(directory: Path, rank: int) -> bool:
    """Whether a process has reported a failure."""
    return _failure_file(directory, rank).exists()


def read_failure(directory: Path, rank: int) -> Failure | None:
    """Return what a process has reported."""
    try:
        values = json.loads(_failure_file(directory, rank).read_text("utf-8"))
    except FileNotFoundError:
        return None
    return Failure(**{**values, "cause": Cause(values["cause"])})


def read_place(directory: Path, rank: int) -> str | None:
    """Return where a process was last."""
    try:
        return _place_file(directory, rank).read_text("utf-8")
    except FileNotFoundError:
        return None


def first_failure(endings: Sequence[Ending]) -> Ending | None:
    """Return the failure that made the others fail; None when nothing failed.

    A process that the launcher killed and that had reported nothing is never it.
    """
    failed = [ending for ending in endings if ending.has_failed]
    named = [ending for ending in failed if not ending.stopped or ending.failure is not None]
    return min(named, key=lambda ending: ending.order, default=None)


def describe(first: Ending, endings: Sequence[Ending]) -> str:
    """Return one paragraph about the first failure; of the others only how many there were."""
    rank = f"rank {first.rank} of {len(endings)}"
    if first.failure is not None:
        text = f"{rank}: {first.failure.message.strip()}"
        text += f" (at {first.failure.place})" if first.failure.place else ""
    else:
        text = f"{rank} {describe_code(first.code)}"
        text += f"; last known place: {first.place}" if first.place else ""
    others = [ending for ending in endings if ending is not first and ending.has_failed]
    also = sum(e.failure is not None and e.failure.cause is Cause.OWN for e in others)
    texts = [f"{also} {_ranks(also)} failed as well"] if also else []
    if len(others) > also:
        texts.append(f"{len(others) - also} {_ranks(len(others) - also)} ended because of it")
    return "; ".join([f"error: {text}", *texts])


def describe_code(code: int) -> str:
    """Return what a process did that has this exit code, negative for a signal."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:  # a real-time signal
        name = ""
    return f"was killed by signal {-code}{name}"


def _ranks(count: int) -> str:
    return "other rank" if count == 1 else "other ranks"


def _failure_file(directory: Path, rank: int) -> Path:
    return directory / f"failure-{rank}.json"


def _place_file(directory: Path, rank: int) -> Path:
    return directory / f"place-{rank}.txt"


def _write(path: Path, text: str) -> None:
    """Write a file at once; nothing when its directory is gone, because nobody reads it then."""
    temporary = path.with_suffix(".new")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except FileNotFoundError:
        return
