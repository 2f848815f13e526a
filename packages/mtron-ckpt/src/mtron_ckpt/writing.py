"""Carries out a planned save: the caller stages, a thread writes and commits."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from importlib.metadata import version
from mmap import mmap
from pathlib import Path
from queue import SimpleQueue

from mtron_ckpt.data_file import DataFileWriter
from mtron_ckpt.layout import PAGE_BYTES, Member, WindowFiller
from mtron_ckpt.manifest import (
    COMMIT_FILE,
    FORMAT,
    INDEX_FILE,
    MANIFEST_FILE,
    VERSION,
    FileRecord,
    Index,
    Manifest,
    describe,
    dump_commit,
    dump_index,
    dump_manifest,
)
from mtron_ckpt.plan import SavePlan
from mtron_ckpt.staging import StagingPool
from mtron_ckpt.steps import TemporaryStep, point_to_latest, step_name
from mtron_ckpt.storage import describe_failure, sync_directory, write_file

_log = logging.getLogger(__name__)


class SaveHandle:
    """A save that may still be running; an error that nobody waits for is logged.

    Attributes:
        step: the step being saved.
    """

    def __init__(self, step: int, future: Future[Path]) -> None:
        self.step = step
        self._future = future
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
            OSError: it could not be written; nothing of it is left.
            TimeoutError: it is still running.
        """
        try:
            return self._future.result(timeout_seconds)
        finally:
            self._seen = self._future.done()

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


class _Stop(Enum):
    """Why no more windows come."""

    STAGED = auto()
    ABORTED = auto()


class _Save:
    """One save in progress."""

    def __init__(
        self, plan: SavePlan, pool: StagingPool, after_commit: Callable[[Path], None] | None
    ) -> None:
        self.future: Future[Path] = Future()
        self._plan = plan
        self._pool = pool
        self._after_commit = after_commit
        self._queue: SimpleQueue[_Staged | _Stop] = SimpleQueue()
        self._failed = threading.Event()
        self._directory = TemporaryStep(plan.root, plan.step)
        try:
            path = self._directory.path / plan.data_name
            path.parent.mkdir()
            self._data = DataFileWriter(path, plan.data)
        except BaseException:
            self._directory.close()
            raise

    def stage(self) -> None:
        """Copy all arrays into buffers and pass these to the thread (runs in the caller)."""
        filler = WindowFiller(self._plan.blocks)
        try:
            for window in self._plan.data.windows():
                if self._failed.is_set():
                    break
                staged = _Staged(window, self._pool.acquire())
                try:
                    filler.fill(window, staged.content)
                except BaseException:
                    self._pool.release(staged.buffer)
                    raise
                self._queue.put(staged)
        except BaseException:
            self._queue.put(_Stop.ABORTED)
            raise
        self._plan.blocks.clear()  # the caller's arrays need not live until they are written
        self._queue.put(_Stop.STAGED)

    def run(self) -> None:
        """Write and commit the step (runs in the thread)."""
        outcome: Path | BaseException | None
        try:
            outcome = self._commit() if self._write_windows() else None
        except FileExistsError as error:
            outcome = error
        except OSError as error:
            plan = self._plan
            outcome = describe_failure(error, self._directory.final, plan.needed_bytes)
            outcome.__cause__ = error
        except BaseException as error:
            outcome = error
        self._data.close()
        self._directory.close()
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        elif outcome is not None:
            self.future.set_result(outcome)

    def _write_windows(self) -> bool:
        """Write what the caller stages; after a failure, only take it from the caller's hands.

        Returns:
            Whether there is something to commit: false if the caller has given up.
        """
        failure: BaseException | None = None
        while isinstance(staged := self._queue.get(), _Staged):
            try:
                if failure is None:
                    self._data.write(staged.window, staged.content)
            except BaseException as error:
                failure = error
                self._failed.set()
            finally:
                self._pool.release(staged.buffer)
        if failure is not None:
            raise failure
        return staged is _Stop.STAGED

    def _commit(self) -> Path:
        """Write everything beside the array data, then let the step appear."""
        plan, directory = self._plan, self._directory.path
        record, arrays = self._data.finish(plan.data_name, 0)
        files = plan.files | {INDEX_FILE: dump_index(Index(arrays=arrays))}
        for name in sorted({Path(name).parent for name in files} - {Path()}):
            (directory / name).mkdir()
        for name, content in files.items():
            write_file(directory / name, content)
        manifest = dump_manifest(_manifest(plan, record, files))
        write_file(directory / MANIFEST_FILE, manifest)
        write_file(directory / COMMIT_FILE, dump_commit(manifest))
        for path in directory.iterdir():
            if path.is_dir():
                sync_directory(path)
        sync_directory(directory)
        self._directory.commit(plan.replace)
        point_to_latest(plan.root)
        if self._after_commit is not None:
            self._after_commit(self._directory.final)
        return self._directory.final


def _manifest(plan: SavePlan, data: FileRecord, files: dict[str, bytes]) -> Manifest:
    return Manifest(
        format=FORMAT,
        version=VERSION,
        container="packed",
        producer={"name": "mtron-ckpt", "version": version("mtron-ckpt")},
        step=plan.step,
        config=plan.config,
        layout=plan.layout,
        data=(data.path,),
        files=(data, *(describe(name, content) for name, content in files.items())),
    )


def start_save(
    plan: SavePlan, pool: StagingPool, after_commit: Callable[[Path], None] | None = None
) -> SaveHandle:
    """Stage a planned save and let a thread write it.

    Args:
        plan: what to save.
        pool: where arrays wait to be written.
        after_commit: called in the thread with the committed directory.

    Raises:
        OSError: the step could not even be begun.
    """
    try:
        save = _Save(plan, pool, after_commit)
    except OSError as error:
        path = plan.root / step_name(plan.step)
        raise describe_failure(error, path, plan.needed_bytes) from error
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
    return SaveHandle(plan.step, save.future)
