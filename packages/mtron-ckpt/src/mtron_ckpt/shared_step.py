"""The directory in which several writers write a step: how they come together and part."""

import contextlib
import fcntl
import logging
import os
from pathlib import Path

from mtron_ckpt.coordination import FOLDER, Coordination, Patience, alive_file
from mtron_ckpt.index import Written
from mtron_ckpt.manifest import DATA_DIRECTORY
from mtron_ckpt.messages import BlockList, Done, Failure
from mtron_ckpt.peers import PeerError, Peers, name_writers, save_failure
from mtron_ckpt.steps import discard, place_step, retire, step_name, temporary_name
from mtron_ckpt.storage import if_abandoned, is_same, make_directory, own
from mtron_ckpt.writers import Writers

_log = logging.getLogger(__name__)


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
        self._committed = self._left = self._closed = False
        make_directory(root)
        self._directory, self._board = self._join()
        self._peers = Peers(self.path, self.final, self._board, writers)

    def exchange(self, mine: BlockList) -> None:
        """Publish what this writer holds."""
        self._board.publish("plan", mine)

    def collect(self) -> list[BlockList]:
        """Wait for the lists of all writers and return them by rank."""
        ranks = range(self._writers.count)
        self._peers.wait_for("plan", ranks)
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
        self._peers.check()

    def gather(self, written: Written) -> list[Written] | None:
        """Tell that this part is written; wait for the others, or for the commit."""
        if not self._writers.coordinates:
            self._peers.wait_for("alive", [0])  # so that what it finds is of this attempt
            done = Done(plan=self._plan, written=written)
            self._board.publish("done", done)
            self._board.leave()
            self._committed = self._peers.wait_until(self._is_committed)
            if not self._committed:
                self._left = True  # the others can go on without
                raise self._peers.failure("this process ended before writer 0 had committed it")
            return None
        others = self._writers.others
        self._peers.wait_for("done", others)
        done = {rank: self._board.read(f"done-{rank}.json", Done) for rank in others}
        differing = [rank for rank in others if done[rank].plan != self._plan]
        if differing:
            raise ValueError(
                f"{self.final}: the blocks of the arrays have changed since the last save, but "
                f"not on all writers, got another list from {name_writers(differing)} than from "
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
        self._peers.stop_waiting()

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
                raise save_failure(
                    self.final,
                    f"an earlier save of this step as writer {self._writers.rank} of the same "
                    "session has not ended on all writers",
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

    def _is_committed(self) -> bool:
        return is_same(self._directory, self.final)

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
