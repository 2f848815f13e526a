"""How saving processes end when one of them does not go on: `python exit_together.py DIR HOW`.

All have saved step 1. Two begin step 2 and come to their end while it is being saved, without
waiting for it. The third is `dead` (kill -9, in the midst of it), `absent` (it ends before it has
come) or `stopped` (it lives and does nothing). Prints how long the two needed to end after that,
and the steps that are there.
"""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from forked_writers import fork, status_of

from mtron_ckpt import CheckpointManager, LocalArray, Metadata, Writers
from mtron_ckpt.coordination import FOLDER
from mtron_ckpt.shared_step import SharedStep

COUNT = 3
TIMEOUT_SECONDS = {"dead": 600.0, "absent": 600.0, "stopped": 1.0}


def writer(root: Path, writers: Writers, ready: int, how: str | None, come: int) -> None:
    manager = CheckpointManager(root, writers=writers)
    arrays = {"param/x": LocalArray.whole(np.zeros(10))}
    manager.save(arrays, Metadata(step=1)).wait()
    if how is None:
        manager.save(arrays, Metadata(step=2))
        wait_for(root / f"step-00000002.tmp-{writers.key}" / FOLDER, come)
    elif how != "absent":
        SharedStep(root, 2, writers)
    os.write(ready, b"x")
    if how not in (None, "absent"):
        time.sleep(600)


def wait_for(folder: Path, count: int) -> None:
    """Wait until so many writers have come."""
    while len(list(folder.glob("alive-*"))) < count:
        time.sleep(0.01)


def main(root: Path, how: str) -> None:
    begun, ready = os.pipe()
    children = []
    for rank in range(COUNT):
        writers = Writers(rank, COUNT, "session", TIMEOUT_SECONDS[how])
        come = COUNT - (how == "absent")
        run = partial(writer, root, writers, ready, how if rank == 2 else None, come)
        children.append(fork(run, root / f"report-{rank}"))
    for _ in range(COUNT):
        os.read(begun, 1)
    os.kill(children[2], {"dead": signal.SIGKILL, "stopped": signal.SIGSTOP}.get(how, 0))
    start = time.monotonic()
    assert [status_of(child) for child in children[:2]] == [0, 0]
    print(f"{time.monotonic() - start:.2f}", CheckpointManager(root).steps())
    os.kill(children[2], signal.SIGKILL)
    status_of(children[2])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
