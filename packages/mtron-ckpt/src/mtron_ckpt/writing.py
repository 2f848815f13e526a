"""Carries out a planned save: the caller stages, a thread writes and commits."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from mmap import mmap
from pathlib import Path
from queue import SimpleQueue

from mtron_ckpt.committing import write_documents
from mtron_ckpt.data_file import DataFileWriter
from mtron_ckpt.index import Written
from mtron_ckpt.layout import PAGE_BYTES, Member, WindowFiller
from mtron_ckpt.peers import PeerError
from mtron_ckpt.plan import SavePlan
from mtron_ckpt.staging import StagingPool
from mtron_ckpt.steps import StepDirectory, point_to_latest
from mtron_ckpt.storage import describe_failure

_log = logging.getLogger(__name__)


class SaveHandle:
    """A save that may still be running; an error that nobody waits for is logged.

    Attributes:
        step: the step being saved.
    """

    def __init__(self, step: int, future: Future[Path], stop_waiting: Callable[[], None]) -> None:
        self.step = step
        self._future = future
        self._stop_waiting = stop_waiting
        self._seen = False

    @property
    def done(self) -> bool:
        """Whether the save has ended, well or not."""
        return self._future.done()

    def wait(self, timeout_seconds: float | None = None) -> Path:
        """Wait for the save.

        Returns:
            The committed directory.

        Raises:
            OSError: it could not be written, by this writer or another; nothing of it is left.
                It is a ConnectionError if the process of another writer has ended, a TimeoutError
                if another writer has given no sign for too long.
            ValueError: the writers have not given every array exactly once.
            TimeoutError: it is still running (`done` is false).
        """
        try:
            return self._future.result(timeout_seconds)
        finally:
            self._seen = self._future.done()

    def stop_waiting(self) -> None:
        """Do not let the save wait any longer for writers that have not come to it.

        For a process whose work has failed: others may never come. A save to which all writers
        have come goes on; every other one fails at once, on all writers.
        """
        self._stop_waiting()

    def __del__(self) -> None:
        if not self._seen:
            self._future.add_done_callback(partial(_log_failure, self.step))


def _log_failure(step: int, future: Future[Path]) -> None:
    error = future.exception()
    if error is not None:
        _log.error("step %d was not saved, and nobody waited for it: %s", step, error)


@dataclass(frozen=True)
class _Staged:
    """A window of the data file on its way to the thread."""

    window: Sequence[Member]
    buffer: mmap

    @property
    def content(self) -> memoryview:
        """The window's bytes; they lie at the same place within a page as in the file."""
        start, stop = self.window[0].header, self.window[-1].stop
        lead = start % PAGE_BYTES
        assert lead + stop - start <= len(self.buffer)
        return memoryview(self.buffer)[lead : lead + stop - start]


_STAGED_ALL = None
"""Follows the last window; an exception in its place says that the caller has given up."""


class _Save:
    """One save in progress."""

    def __init__(
        self,
        plan: SavePlan,
        directory: StepDirectory,
        pool: StagingPool,
        after_commit: Callable[[Path], None] | None,
    ) -> None:
        self.future: Future[Path] = Future()
        self._plan = plan
        self._directory = directory
        self._pool = pool
        self._after_commit = after_commit
        self._queue: SimpleQueue[_Staged | BaseException | None] = SimpleQueue()
        self._failed = threading.Event()
        self._data: DataFileWriter | None = None
        if plan.data is not None:
            path = directory.path / plan.data_name
            path.parent.mkdir(exist_ok=True)
            self._data = DataFileWriter(path, plan.data)

    def stage(self) -> None:
        """Copy all arrays into buffers and pass these to the thread (runs in the caller)."""
        filler = WindowFiller(self._plan.blocks)
        try:
            for window in self._plan.data.windows() if self._plan.data is not None else ():
                if self._failed.is_set():
                    break
                staged = _Staged(window, self._pool.acquire())
                try:
                    filler.fill(window, staged.content)
                except BaseException:
                    self._pool.release(staged.buffer)
                    raise
                self._queue.put(staged)
        except BaseException as error:
            self._queue.put(error)
            raise
        self._plan.blocks.clear()  # the caller's arrays need not live until they are written
        self._queue.put(_STAGED_ALL)

    def run(self) -> None:
        """Write and commit the step (runs in the thread)."""
        outcome: Path | BaseException
        try:
            self._write_windows()
            outcome = self._commit()
        except PeerError as failure:
            outcome = failure.error
        except FileExistsError as error:
            outcome = error
        except OSError as error:
            plan = self._plan
            outcome = describe_failure(error, self._directory.final, plan.needed_bytes)
            outcome.__cause__ = error
        except BaseException as error:
            outcome = error
        if self._data is not None:
            self._data.close()
        if isinstance(outcome, BaseException):
            self._directory.close(outcome)
            self.future.set_exception(outcome)
        else:
            self._directory.close(None)
            self.future.set_result(outcome)

    def _write_windows(self) -> None:
        """Write what the caller stages; after a failure, only take it from the caller's hands."""
        failure: BaseException | None = None
        while isinstance(staged := self._queue.get(), _Staged):
            try:
                if failure is None and self._data is not None:
                    self._directory.check()
                    self._data.write(staged.window, staged.content)
            except BaseException as error:
                failure = error
                self._failed.set()
            finally:
                self._pool.release(staged.buffer)
        failure = failure or staged
        if failure is not None:
            raise failure

    def _commit(self) -> Path:
        """Let the step appear, or wait until another writer has done so."""
        plan, directory = self._plan, self._directory
        written = Written(file=None, pieces=())
        if self._data is not None:
            written = self._data.finish(plan.data_name)
        gathered = directory.gather(written)
        if gathered is not None:
            write_documents(directory.path, plan, gathered)
            directory.commit(plan.replace)
            point_to_latest(plan.root)
            if self._after_commit is not None:
                self._after_commit(directory.final)
        return directory.final


def start_save(
    plan: SavePlan,
    directory: StepDirectory,
    pool: StagingPool,
    after_commit: Callable[[Path], None] | None = None,
) -> SaveHandle:
    """Stage a planned save and let a thread write it.

    Args:
        plan: what to save.
        directory: where to write it; this closes it, in the end or when it fails.
        pool: where arrays wait to be written.
        after_commit: called in the thread with the committed directory, by the writer that
            commits.

    Raises:
        OSError: the step could not even be begun.
    """
    try:
        save = _Save(plan, directory, pool, after_commit)
    except OSError as error:
        failure = describe_failure(error, directory.final, plan.needed_bytes)
        directory.close(failure)
        raise failure from error
    thread = threading.Thread(target=save.run, name=f"mtron-ckpt step {plan.step}")
    concurrent = pool.limited  # else the thread would slow down what the caller waits for
    if concurrent:
        thread.start()
    try:
        save.stage()
    except BaseException:
        thread.join() if concurrent else save.run()  # removes what was written
        raise
    if not concurrent:
        thread.start()
    return SaveHandle(plan.step, save.future, directory.stop_waiting)
