"""How a writer of a checkpoint waits for the others, and when it stops."""

import contextlib
import errno
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from mtron_ckpt.coordination import FOLDER, Coordination, Patience, Presence
from mtron_ckpt.messages import Failure
from mtron_ckpt.steps import temporary_name
from mtron_ckpt.writers import Writers

_COORDINATOR_ADVANTAGE = 1.1
"""Whoever waits for the commit waits longer than writer 0, so that there is one verdict."""


class PeerError(Exception):
    """Another writer has failed, so that this one cannot succeed.

    Attributes:
        error: what the caller is to be told.
    """

    def __init__(self, error: ValueError | OSError) -> None:
        super().__init__(str(error))
        self.error = error


class Peers:
    """The other writers of a save, as this one sees them.

    Args:
        path: the directory where they meet.
        final: what it becomes.
        board: where they publish.
        writers: this writer among them.
    """

    def __init__(self, path: Path, final: Path, board: Coordination, writers: Writers) -> None:
        self._path = path
        self._final = final
        self._board = board
        self._writers = writers
        self._stopping = threading.Event()

    def stop_waiting(self) -> None:
        """Wait from now on only for writers that have come to this save."""
        self._stopping.set()

    def check(self) -> None:
        """Raise if another writer has failed."""
        self._check(self._board.names())

    def wait_for(self, kind: str, ranks: Collection[int]) -> None:
        """Wait until these writers have published documents of this kind.

        Raises:
            PeerError: they will not, or it took too long.
        """
        patience = Patience(self._writers.timeout_seconds, self._writers.count)
        suffix = "" if kind == "alive" else ".json"
        presence: dict[int, Presence] = {}
        while True:
            names = self._board.names()
            missing = [rank for rank in ranks if f"{kind}-{rank}{suffix}" not in names]
            if not missing:
                return
            self._check(names)
            gone = [rank for rank in missing if presence.get(rank) is Presence.GONE]
            if gone:  # it was before the names were listed
                problem = f"{name_writers(gone)} ended before doing a part of it"
                raise self.failure(problem, errno.ECONNABORTED)
            absent = [rank for rank in missing if presence.get(rank) is Presence.ABSENT]
            if absent and self._must_end:
                raise self.failure(f"given up before {name_writers(absent)} had come to this save")
            if patience.tried:
                self._check_same_step(missing)
            if not patience.pause(names):
                timeout = self._writers.timeout_seconds
                problem = f"{name_writers(missing)} gave no sign for {timeout:g} seconds"
                raise self.failure(problem, errno.ETIMEDOUT)
            presence = {rank: self._board.presence(rank) for rank in missing}

    def wait_until(self, committed: Callable[[], bool]) -> bool:
        """Wait until writer 0 has committed; false if this process ends before.

        Args:
            committed: tells whether it has.

        Raises:
            PeerError: it will not, or it took too long.
        """
        timeout = _COORDINATOR_ADVANTAGE * self._writers.timeout_seconds
        patience = Patience(timeout, self._writers.count)
        while True:
            ended = self._board.presence(0) in (Presence.GONE, Presence.ABSENT)
            names = self._board.names()
            if committed():
                return True
            self._check(names)
            if ended:  # before we looked for the step
                problem = "writer 0 ended before committing it"
                raise self.failure(problem, errno.ECONNABORTED)
            if self._must_end:
                return False
            if not patience.pause(names):
                others = self._writers.others
                late = [rank for rank in others if f"done-{rank}.json" not in names] or [0]
                problem = f"{name_writers(late)} gave no sign for {timeout:g} seconds"
                raise self.failure(problem, errno.ETIMEDOUT)

    def failure(self, problem: str, code: int = errno.EIO) -> PeerError:
        """Return the error to raise because of another writer."""
        return save_failure(self._final, problem, code)

    @property
    def _must_end(self) -> bool:
        """Whether nobody is interested in this save any more, so that it must not be a burden."""
        return self._stopping.is_set() or not threading.main_thread().is_alive()

    def _check(self, names: Collection[str]) -> None:
        failed = sorted(name for name in names if name.startswith("failed-"))
        if failed:
            raise PeerError(self._board.read(failed[0], Failure).error())

    def _check_same_step(self, missing: Collection[int]) -> None:
        """Find writers that wait for this one at another step; then all of them fail."""
        rank = self._writers.rank
        pattern = temporary_name(Path("step-*"), self._writers.key).name
        for path in self._path.parent.glob(pattern):
            if path == self._path:
                continue
            with contextlib.suppress(FileNotFoundError):  # that save is just ending
                board = Coordination(path / FOLDER, rank)
                try:
                    there = [other for other in missing if board.presence(other) is Presence.THERE]
                    if not there or board.presence(rank) is not Presence.ABSENT:
                        continue
                    error = ValueError(
                        "metadata.step: must be the same on every writer, in the same order, got "
                        f"{self._final.name} on writer {rank} and "
                        f"{path.name.partition('.')[0]} on {name_writers(there)}"
                    )
                    board.publish("failed", Failure.of(error, rank))
                    raise PeerError(error)
                finally:
                    board.close()


def save_failure(final: Path, problem: str, code: int = errno.EIO) -> PeerError:
    """Return the error of a save that other writers have prevented.

    Args:
        final: the directory of the step.
        problem: what they did.
        code: error number; it makes the error a ConnectionError or a TimeoutError where it says so.
    """
    text = f"{final}: the checkpoint was not saved: {problem}. Earlier checkpoints are whole"
    return PeerError(OSError(code, text))


def name_writers(ranks: Collection[int]) -> str:
    """Name writers in a message."""
    return f"writer{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
