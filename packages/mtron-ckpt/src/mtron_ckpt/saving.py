"""`save`: the arrays are staged when it returns; a thread writes and commits them."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mtron_ckpt.arrays import Arrays, Metadata
from mtron_ckpt.local_arrays import check_held
from mtron_ckpt.messages import BlockList
from mtron_ckpt.peers import PeerError
from mtron_ckpt.plan import Request, check_step, plan_part, plan_save
from mtron_ckpt.shared_plan import PlanCache, SharedPlan, list_blocks, plan_shared
from mtron_ckpt.shared_step import SharedStep
from mtron_ckpt.staging import StagingPool
from mtron_ckpt.steps import TemporaryStep, check_absent, step_name
from mtron_ckpt.storage import check_space, describe_failure
from mtron_ckpt.writers import Writers
from mtron_ckpt.writing import SaveHandle, start_save


def save(
    root: str | os.PathLike[str],
    arrays: Arrays,
    metadata: Metadata,
    *,
    replace: bool = False,
    pool: StagingPool | None = None,
    writers: Writers | None = None,
) -> SaveHandle:
    """Save a checkpoint to `root/step-<step>/`, in the background.

    The step appears under its name in one atomic rename, after all of it is durable; if this
    process ends before, nothing of it is seen. The arrays may change as soon as this returns.

    With several writers, each of them calls this for the same steps in the same order, with the
    blocks that it holds. Together they must give every array completely; equal blocks of several
    writers are replicas, of which one is written. It returns when all writers have called and
    this one's share is staged. The step is there for all of them or for none.

    Args:
        root: directory of the run's checkpoints; created if it does not exist.
        arrays: for each `<kind>/<parameter name>` the rectangles that make up the array; among
            several writers those that this one holds, or nothing.
        metadata: everything else; among several writers, that of writer 0 is saved.
        replace: whether a step that is there already may be replaced (atomically, when the
            new one is complete). Needs Linux and a file system that can exchange directories.
        pool: where the arrays wait to be written; give one to several saves to reuse its memory,
            or one with a limit to bound it. Without, each save allocates the size of the state.
        writers: this process among the writers; None if it is the only one.

    Returns:
        A handle; its `wait` raises what went wrong in the background.

    Raises:
        ValueError: naming the array or key that cannot be saved; nothing was written. Among
            several writers, each raises it and it names those concerned.
        FileExistsError: the step is there already, and `replace` is false.
        OSError: there is no space for it (path, needed and free bytes are named), the system
            refused, or another writer has failed, ended, or not come in time.
    """
    request = Request(Path(root), arrays, metadata, replace)
    return begin_save(request, pool or StagingPool(), writers, PlanCache())


def begin_save(
    request: Request,
    pool: StagingPool,
    writers: Writers | None,
    cache: PlanCache,
    after_commit: Callable[[Path], None] | None = None,
) -> SaveHandle:
    """Begin a save as the only writer or as one of several; raises as `save` does.

    Args:
        request: what to save.
        pool: where arrays wait to be written.
        writers: this process among the writers; None if it is the only one.
        cache: the division of work of the save before.
        after_commit: called in the thread with the committed directory, by the writer that
            commits.
    """
    root = request.root
    check_step(request.metadata.step)
    if root.exists() and not root.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, f"{root}: checkpoints are saved in a directory, and this is a file"
        )
    if writers is not None and writers.count > 1:
        return _begin_shared(request, pool, writers, cache, after_commit)
    plan = plan_save(request)
    _check_absent(request)
    check_space(root, plan.needed_bytes)
    with _described(request, plan.needed_bytes):
        directory = TemporaryStep(root, plan.step)
    return start_save(plan, directory, pool, after_commit)


def _begin_shared(
    request: Request,
    pool: StagingPool,
    writers: Writers,
    cache: PlanCache,
    after_commit: Callable[[Path], None] | None,
) -> SaveHandle:
    step = request.metadata.step
    try:
        with _described(request, 0):
            directory = SharedStep(request.root, step, writers)
        try:
            directory.check()
            _check_absent(request)
            held = check_held(request.arrays)
            shared = _agree(directory, list_blocks(held, writers.count), cache)
            plan = plan_part(request, held, shared, writers)
            if writers.coordinates:
                check_space(request.root, plan.needed_bytes - directory.written_bytes)
        except BaseException as error:
            directory.close(error)
            raise
        return start_save(plan, directory, pool, after_commit)
    except PeerError as failure:
        raise failure.error from None


def _agree(directory: SharedStep, mine: BlockList, cache: PlanCache) -> SharedPlan:
    """Divide the work with the other writers; without waiting if this one's blocks are as before.

    That the others' are so, too, the coordinator makes sure of before it commits.
    """
    directory.exchange(mine)
    plan = cache.find(mine)
    if plan is None:
        plan = plan_shared(directory.collect())
        cache.keep(mine, plan)
    directory.follow(plan.digest)
    return plan


def _check_absent(request: Request) -> None:
    if not request.replace:
        check_absent(request.root, request.metadata.step)


@contextmanager
def _described(request: Request, needed_bytes: int) -> Iterator[None]:
    """Let errors of the system say what they mean for the checkpoint."""
    try:
        yield
    except OSError as error:
        path = request.root / step_name(request.metadata.step)
        raise describe_failure(error, path, needed_bytes) from error
