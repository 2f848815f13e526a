"""Ends one of four saving processes at its file operations in turn:
`python crash_together.py DIR RANK FIRST STRIDE`.

Every trial starts from a root with one committed step. Of the writers of the next step the one of
this rank ends as by kill -9 just before its operation number FIRST, FIRST + STRIDE, ... or in the
middle of a write. Prints a line per trial: the operation that was not done, what became of the
other writers, and the newest step that is left.
"""

import os
import shutil
import sys
from functools import partial
from pathlib import Path

from crash_everywhere import crash_at
from forked_writers import COUNT, FAILED, check, fork, manager_of, save, status_of

from mtron_ckpt import Writers

CRASHED = 137
ROWS = 16
TIMEOUT_SECONDS = 1.0


def one_writer(root: Path, step: int, writers: Writers, operation: int) -> None:
    if operation:
        crash_at(operation, counts_reading=False)  # how often a writer looks depends on the others
    manager = manager_of(root, writers, keep_last=1)
    save(manager, step, writers.rank, ROWS).wait()
    if operation:
        os._exit(0)  # what comes now does not concern the checkpoint


def save_step(root: Path, step: int, session: str, victim: int, operation: int) -> list[int]:
    """Let all writers save a step, and one of them crash; return their exit statuses."""
    children = []
    for rank in range(COUNT):
        writers = Writers(rank, COUNT, session, TIMEOUT_SECONDS)
        run = partial(one_writer, root, step, writers, operation if rank == victim else 0)
        children.append(fork(run, root.parent / f"report-{rank}"))
    return [status_of(child) for child in children]


def trial(template: Path, root: Path, victim: int, operation: int) -> int:
    """Return the exit status of the one that should crash."""
    shutil.copytree(template, root)
    statuses = save_step(root, 2, f"trial {operation}", victim, operation)
    others = {status for rank, status in enumerate(statuses) if rank != victim}
    assert others <= {0, FAILED}, statuses
    newest = check(root, ROWS)[-1]
    assert newest == 2 or 0 not in statuses, "a writer believes that the step was saved"
    print("failed" if FAILED in others else "saved", newest, flush=True)
    shutil.rmtree(root)
    return statuses[victim]


def main(directory: Path, victim: int, first: int, stride: int) -> None:
    template, root = directory / "template", directory / "root"
    assert not any(save_step(template, 1, "first", 0, 0))
    for operation in range(first, 1000, stride):
        status = trial(template, root, victim, operation)
        if status == 0:
            return
        assert status in (CRASHED, FAILED), status
    raise AssertionError("the save never ended")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
