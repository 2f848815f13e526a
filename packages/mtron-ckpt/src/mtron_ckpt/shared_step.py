"""The directory in which several writers write a step: how they come together and part."""

import contextlib
import errno
import fcntl
import logging
import os
import threading
from collections.abc import Collection
from pathlib import Path

from mtron_ckpt.coordination import FOLDER, Coordination, Patience, Presence, alive_file
from mtron_ckpt.index import Written
from mtron_ckpt.manifest import DATA_DIRECTORY
from mtron_ckpt.messages import BlockList, Done, Failure
from mtron_ckpt.steps import discard, place_step, retire, step_name, temporary_name
from mtron_ckpt.storage import if_abandoned, is_same, make_directory, own
from mtron_ckpt.writers import Writers

_COORDINATOR_ADVANTAGE = 1.1
"""Whoever waits for the commit waits longer than writer 0, so that there is one verdict."""
_log = logging.getLogger(__name__)


class PeerError(Exception):
    """Another writer has failed, so that this one cannot succeed.

    Attributes:
        error: what the caller is to be told.
    """

    def __init__(self, error: ValueError | OSError) -> None:
        super().__init__(str(error))
        self.error = error


class SharedStep:
    """The directory of a step, owned together by the writers of a session.

    It has one name for all of them. Whoever is in it holds a shared lock on it, and what a writer
    publishes there stays until everyone has come and gone.

    Args:
        root: the checkpoint root; created if it does not exist.
        step: the step.
        writers: this writer among the others.

    Raises:
        OSError: the system refused.
        PeerError: another writer has failed already, or an earlier attempt is not over.
    """

    def __init__(self, root: Path, step: int, writers: Writers) -> None:
        self.final = root / step_name(step)
        self.path = temporary_name(self.final, writers.key)
        self._writers = writers
        self._plan = ""
        self._aside: Path | None = None
        self._stopping = threading.Event()
        self._committed = self._left = self._closed = False
        make_directory(root)
        self._directory, self._board = self._join()

    def exchange(self, mine: BlockList) -> None:
        """Publish what this writer holds."""
        self._board.publish("plan", mine)

    def collect(self) -> list[BlockList]:
        """Wait for the lists of all writers and return them by rank."""
        ranks = range(self._writers.count)
        self._wait_for("plan", ranks)
        return [self._board.read(f"plan-{rank}.json", BlockList) for rank in ranks]

    def follow(self, plan: str) -> None:
        """Note the digest of the plan that this writer follows."""
        self._plan = plan

    @property
    def written_bytes(self) -> int:
        """What the writers have written so far."""
        total = 0
        for path in self.path.glob(f"{DATA_DIRECTORY}/*"):
            with contextlib.suppress(FileNotFoundError):  # a writer has just failed
                total += path.stat().st_blocks * 512
        return total

    def check(self) -> None:
        """Raise if another writer has failed."""
        self._check(self._board.names())

    def gather(self, written: Written) -> list[Written] | None:
        """Tell that this part is written; wait for the others, or for the commit."""
        if not self._writers.coordinates:
            self._wait_for("alive", [0])  # so that what it finds is of this attempt
            done = Done(plan=self._plan, written=written)
            self._board.publish("done", done)
            self._board.leave()
            self._wait_for_commit()
            return None
        others = self._writers.others
        self._wait_for("done", others)
        done = {rank: self._board.read(f"done-{rank}.json", Done) for rank in others}
        differing = [rank for rank in others if done[rank].plan != self._plan]
        if differing:
            raise ValueError(
                f"{self.final}: the blocks of the arrays have changed since the last save, but "
                f"not on all writers, got another list from {_writers(differing)} than from "
                "writer 0; nothing was saved, and the next save asks all writers again"
            )
        self._set_aside()
        return [written, *(done[rank].written for rank in others)]

    def commit(self, replace: bool) -> None:
        """Give the directory its final name."""
        self.check()
        place_step(self.path, self.final, replace)
        self._committed = True

    def stop_waiting(self) -> None:
        """Wait from now on only for writers that have come to this save."""
        self._stopping.set()

    def close(self, error: BaseException | None) -> None:
        """Part from the others; after an error they learn of it, and the last one tidies up."""
        if self._closed:
            return
        self._closed = True
        if error is not None and not self._committed and not self._left:
            try:
                self._withdraw(error.error if isinstance(error, PeerError) else error)
            except OSError as trouble:
                _log.warning("%s: could not be given up properly: %s", self.path, trouble)
        self._board.close()
        if self._committed and self._aside is not None:
            discard(self._aside)
            discard(self.path)  # the step that was replaced
        os.close(self._directory)

    def _join(self) -> tuple[int, Coordination]:
        """Come into the directory; make it, or wait until an earlier attempt has left it."""
        patience = Patience(self._writers.timeout_seconds, self._writers.count)
        while True:
            with contextlib.suppress(FileExistsError):
                self.path.mkdir()
            directory = own(self.path)
            if directory is not None:
                with contextlib.ExitStack() as cleanup:
                    cleanup.callback(os.close, directory)
                    board = self._enter(directory)
                    if board is not None:
                        cleanup.pop_all()
                        return directory, board
                with if_abandoned(self.path) as abandoned:
                    if abandoned:
                        retire(self.path)
            if not patience.pause():
                raise self._failure(
                    f"an earlier save of this step as writer {self._writers.rank} of the same "
                    "session has not ended on all writers"
                )

    def _enter(self, directory: int) -> Coordination | None:
        """Come to the others in the directory, unless this writer has been there before."""
        with contextlib.suppress(FileExistsError):
            (self.path / FOLDER).mkdir()
        if not is_same(directory, self.path):  # its name has changed since it was opened
            return None
        board = Coordination(self.path / FOLDER, self._writers.rank)
        try:
            if board.enter():
                return board
        except OSError:
            board.close()
            raise
        board.close()
        return None

    def _set_aside(self) -> None:
        """Take directory and messages away from where writers meet, as no one has to come now.

        What has them open goes on using them. So neither messages nor, when it is exchanged for
        this one, an older step lies where the next save of this step begins.
        """
        name, self.path, aside = self.path, temporary_name(self.final), temporary_name(self.final)
        name.rename(self.path)
        (self.path / FOLDER).rename(aside)
        self._aside = aside

    def _wait_for(self, kind: str, ranks: Collection[int]) -> None:
        """Wait until these writers have published documents of this kind."""
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
                problem = f"{_writers(gone)} ended before doing a part of it"
                raise self._failure(problem, errno.ECONNABORTED)
            absent = [rank for rank in missing if presence.get(rank) is Presence.ABSENT]
            if absent and self._must_end:
                raise self._failure(f"given up before {_writers(absent)} had come to this save")
            if patience.tried:
                self._check_same_step(missing)
            if not patience.pause(names):
                raise self._failure(
                    f"{_writers(missing)} gave no sign for {self._writers.timeout_seconds:g} "
                    "seconds",
                    errno.ETIMEDOUT,
                )
            presence = {rank: self._board.presence(rank) for rank in missing}

    def _wait_for_commit(self) -> None:
        """Wait until writer 0 has given the directory its final name."""
        timeout = _COORDINATOR_ADVANTAGE * self._writers.timeout_seconds
        patience = Patience(timeout, self._writers.count)
        while True:
            ended = self._board.presence(0) in (Presence.GONE, Presence.ABSENT)
            names = self._board.names()
            if is_same(self._directory, self.final):
                self._committed = True
                return
            self._check(names)
            if ended:  # before we looked for the step
                problem = "writer 0 ended before committing it"
                raise self._failure(problem, errno.ECONNABORTED)
            if self._must_end:
                self._left = True
                raise self._failure("this process ended before writer 0 had committed it")
            if not patience.pause(names):
                others = self._writers.others
                late = [rank for rank in others if f"done-{rank}.json" not in names] or [0]
                problem = f"{_writers(late)} gave no sign for {timeout:g} seconds"
                raise self._failure(problem, errno.ETIMEDOUT)

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
        for path in self.final.parent.glob(temporary_name(Path("step-*"), self._writers.key).name):
            if path == self.path:
                continue
            with contextlib.suppress(FileNotFoundError):  # that save is just ending
                board = Coordination(path / FOLDER, rank)
                try:
                    there = [other for other in missing if board.presence(other) is Presence.THERE]
                    if not there or board.presence(rank) is not Presence.ABSENT:
                        continue
                    error = ValueError(
                        "metadata.step: must be the same on every writer, in the same order, got "
                        f"{self.final.name} on writer {rank} and "
                        f"{path.name.partition('.')[0]} on {_writers(there)}"
                    )
                    board.publish("failed", Failure.of(error, rank))
                    raise PeerError(error)
                finally:
                    board.close()

    def _failure(self, problem: str, code: int = errno.EIO) -> PeerError:
        return PeerError(
            OSError(  # a ConnectionError or a TimeoutError where the code says so
                code,
                f"{self.final}: the checkpoint was not saved: {problem}. Earlier checkpoints are "
                "whole",
            )
        )

    def _withdraw(self, error: BaseException) -> None:
        """Tell the others of an error; if all of them have left, delete the directory."""
        if self._aside is not None:
            self._aside.rename(self.path / FOLDER)
        for path in self.path.glob(f"{DATA_DIRECTORY}/writer-{self._writers.rank:04d}-*"):
            path.unlink()  # which also makes room for the message
        names = self._board.names()
        if not any(name.startswith("failed-") for name in names):
            self._board.publish("failed", Failure.of(error, self._writers.rank))
        if self._aside is not None:
            self._aside = None
            meeting = temporary_name(self.final, self._writers.key)
            self.path.rename(meeting)  # so that the last one finds it
            self.path = meeting
        self._board.leave()
        if self._is_last() and is_same(self._directory, self.path):
            retire(self.path)

    def _is_last(self) -> bool:
        """Whether every writer has come and all others have left; then none can come any more."""
        try:
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # others are in it, or nobody can know
            return False
        names = self._board.names()
        return all(alive_file(rank) in names for rank in range(self._writers.count))


def _writers(ranks: Collection[int]) -> str:
    """Name writers in a message."""
    return f"writer{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
