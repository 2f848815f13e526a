"""What the scripts with several writers share: each writer is a fork of the script."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import mtron_ckpt
from mtron_ckpt import CheckpointManager, LocalArray, Metadata, Writers

COUNT = 4
FAILED = 3
"""Exit status of a writer whose save has failed as it should."""


def values(step: int, rows: int = 512) -> dict[str, np.ndarray]:
    """Values that only this step has."""
    rng = np.random.default_rng(step)
    arrays = {f"param/{n}": rng.integers(0, 2**32, (rows, 64), np.uint32) for n in range(4)}
    return arrays | {"param/small": rng.standard_normal(5)}


def share(step: int, rank: int, rows: int = 512) -> dict[str, LocalArray]:
    """What a writer holds: a quarter of two matrices, all of the others."""
    result = {}
    for name, value in values(step, rows).items():
        if name in ("param/0", "param/1"):
            part = rows // COUNT
            block = value[rank * part : (rank + 1) * part]
            result[name] = LocalArray(block, value.shape, (rank * part, 0))
        else:
            result[name] = LocalArray.whole(value)
    return result


def manager_of(root: Path, writers: Writers | None, keep_last: int | None = None) -> Any:
    return CheckpointManager(root, keep_last, writers=writers)


def save(manager: CheckpointManager, step: int, rank: int, rows: int = 512) -> Any:
    metadata = Metadata(step=step, state={"step": step}, assets={"a": b"x"})
    return manager.save(share(step, rank, rows), metadata)


def fork(run: Callable[[], None], report: Path) -> int:
    """Run a writer in a child; what its save raises is left in `report`."""
    child = os.fork()
    if child:
        return child
    try:
        run()
    except (OSError, ValueError) as error:
        report.write_text(str(error))
        sys.exit(FAILED)  # the interpreter's end waits for threads, as in any process
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    sys.exit(0)


def status_of(child: int) -> int:
    """Wait for the end of a child; minus the signal, if one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check(root: Path, rows: int = 512) -> list[int]:
    """Make sure that what the root lists is whole and nothing else is left; return the steps."""
    steps = CheckpointManager(root).steps()
    assert not list(root.glob("*.tmp-*")), "the next manager cleans up"
    for step in steps:
        checkpoint = mtron_ckpt.open(root / f"step-{step:08d}")
        assert checkpoint.state == {"step": step}
        for name, value in values(step, rows).items():
            assert np.array_equal(checkpoint.read(name), value), (step, name)
    if steps:
        assert mtron_ckpt.verify(root).ok
        assert mtron_ckpt.open(root).step == steps[-1]
    return steps
