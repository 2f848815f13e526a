"""`save`: the arrays are staged when it returns; a thread writes and commits them."""

import errno
import os
from pathlib import Path

from mtron_ckpt.arrays import Arrays, Metadata
from mtron_ckpt.plan import SavePlan, plan_save
from mtron_ckpt.staging import StagingPool
from mtron_ckpt.steps import check_absent
from mtron_ckpt.storage import check_space
from mtron_ckpt.writing import SaveHandle, start_save


def save(
    root: str | os.PathLike[str],
    arrays: Arrays,
    metadata: Metadata,
    *,
    replace: bool = False,
    pool: StagingPool | None = None,
) -> SaveHandle:
    """Save a checkpoint to `root/step-<step>/`, in the background.

    The step appears under its name in one atomic rename, after all of it is durable; if this
    process ends before, nothing of it is seen. The arrays may change as soon as this returns.

    Args:
        root: directory of the run's checkpoints; created if it does not exist.
        arrays: for each `<kind>/<parameter name>` the rectangles that make up the array.
        metadata: everything else.
        replace: whether a step that is there already may be replaced (atomically, when the
            new one is complete). Needs Linux and a file system that can exchange directories.
        pool: where the arrays wait to be written; give one to several saves to reuse its memory,
            or one with a limit to bound it. Without, each save allocates the size of the state.

    Returns:
        A handle; its `wait` raises what went wrong in the background.

    Raises:
        ValueError: naming the array or key that cannot be saved; nothing was written.
        FileExistsError: the step is there already, and `replace` is false.
        OSError: there is no space for it (path, needed and free bytes are named), or the
            system refused.
    """
    plan = checked_plan(Path(root), arrays, metadata, replace)
    return start_save(plan, pool or StagingPool())


def checked_plan(root: Path, arrays: Arrays, metadata: Metadata, replace: bool) -> SavePlan:
    """Plan a save and make sure that it can begin; raises as `save` does."""
    plan = plan_save(root, arrays, metadata, replace)
    if root.exists() and not root.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, f"{root}: checkpoints are saved in a directory, and this is a file"
        )
    if not replace:
        check_absent(root, plan.step)
    check_space(root, plan.needed_bytes)
    return plan
