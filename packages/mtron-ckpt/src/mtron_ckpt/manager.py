"""The checkpoints of a run: one save at a time, retention, cleaning."""

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from mtron_ckpt.arrays import Arrays, Metadata
from mtron_ckpt.plan import Request
from mtron_ckpt.saving import begin_save
from mtron_ckpt.shared_plan import PlanCache
from mtron_ckpt.staging import StagingPool
from mtron_ckpt.steps import committed_steps, delete_step, remove_abandoned, step_of
from mtron_ckpt.writers import Writers
from mtron_ckpt.writing import SaveHandle

_log = logging.getLogger(__name__)


def plan_retention(
    steps: Collection[int], saved: int, keep_last: int | None, keep_every: int | None
) -> list[int]:
    """Choose the steps to delete after a save.

    Args:
        steps: all committed steps.
        saved: the step just saved; it is never chosen, nor is the newest.
        keep_last: how many of the newest steps stay; None keeps all.
        keep_every: multiples of this stay as well.
    """
    if keep_last is None:
        return []
    kept = {*sorted(steps)[-keep_last:], saved}
    if keep_every is not None:
        kept |= {step for step in steps if step % keep_every == 0}
    return sorted(set(steps) - kept)


class CheckpointManager:
    """Saves the steps of one run to one root.

    Only one save is in progress at a time; they share one staging pool. Making a manager
    deletes what interrupted saves have left in the root, except where a live process is writing.

    Of several writers each makes one, with the same root and counts; the one of writer 0 deletes.

    Args:
        root: directory of the run's checkpoints; the first save creates it.
        keep_last: how many of the newest steps to keep, at least 1; None keeps all.
        keep_every: also keep steps that are multiples of this; None keeps no others.
        writers: this process among the writers; None if it is the only one.

    Raises:
        ValueError: a count is not positive.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        keep_last: int | None = None,
        keep_every: int | None = None,
        writers: Writers | None = None,
    ) -> None:
        for name, value in {"keep_last": keep_last, "keep_every": keep_every}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}; use None for no limit")
        self.root = Path(root)
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._writers = writers
        self._pool = StagingPool()
        self._cache = PlanCache()
        self._running: SaveHandle | None = None
        if writers is None or writers.coordinates:
            # What this session fails to save stays until all of its writers know of it.
            for path in remove_abandoned(self.root, writers.key if writers else None):
                _log.info("%s: removed, an interrupted save had left it", path)

    def save(self, arrays: Arrays, metadata: Metadata, *, replace: bool = False) -> SaveHandle:
        """Save a step in the background, after waiting for the save before it.

        Args and errors are those of `mtron_ckpt.save`. Of several writers, those whose blocks are
        the same as at the save before do not wait for the others.

        Raises:
            OSError: also if the previous save failed; this one is then not begun.
        """
        self.wait()
        request = Request(self.root, arrays, metadata, replace)
        with self._forgetful():
            self._running = begin_save(
                request, self._pool, self._writers, self._cache, self._retain
            )
        return self._running

    def wait(self) -> None:
        """Wait for the save in progress, if there is one, and raise what went wrong with it."""
        running, self._running = self._running, None
        if running is not None:
            with self._forgetful():
                running.wait()

    def abandon(self) -> None:
        """End the save in progress without waiting for writers that may never come.

        For a process whose work has failed, in place of `close`: a save to which all writers have
        come is still finished, any other is given up on all of them. What goes wrong is logged.
        """
        if self._running is not None:
            self._running.stop_waiting()
        try:
            self.close()
        except (OSError, ValueError) as error:
            _log.warning("%s", error)

    def steps(self) -> list[int]:
        """Return the committed steps, oldest first; a save in progress is not among them."""
        return list(committed_steps(self.root))

    def latest(self) -> Path | None:
        """Return the directory of the newest committed step, or None."""
        return next(reversed(committed_steps(self.root).values()), None)

    def close(self) -> None:
        """Wait for the save in progress, raise what went wrong, free the staging memory."""
        try:
            self.wait()
        finally:
            self._pool.clear()

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abandon()

    @contextmanager
    def _forgetful(self) -> Iterator[None]:
        """After an error, let the next save agree anew with the other writers."""
        try:
            yield
        except BaseException:
            self._cache.clear()
            raise

    def _retain(self, saved: Path) -> None:
        """Delete the steps that are no longer to be kept (runs in the saving thread)."""
        steps = committed_steps(self.root)
        doomed = plan_retention(steps, step_of(saved) or 0, self._keep_last, self._keep_every)
        for step in doomed:
            try:
                delete_step(steps[step])
            except OSError as error:
                _log.warning("%s: could not be deleted: %s", steps[step], error)
