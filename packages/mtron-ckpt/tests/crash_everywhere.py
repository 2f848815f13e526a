"""Ends a saving process at each of its file operations in turn: `python crash_everywhere.py DIR`.

Every trial starts from a root with one committed step. The process that saves the next one is a
fork, which ends as by kill -9 just before its n-th operation, or in the middle of a write. Prints
a line per trial: the operation that was not done, and the newest step that is left.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import mtron_ckpt
from mtron_ckpt import CheckpointManager, LocalArray, Metadata

OPERATIONS = ("open", "mkdir", "pwrite", "fsync", "rename", "replace", "unlink", "rmdir")


def values(step: int) -> dict[str, np.ndarray]:
    """Values that only this step has."""
    return {"param/x": np.random.default_rng(step).standard_normal(1000)}


def save(root: Path, step: int) -> None:
    """Save a step, deleting older ones."""
    arrays = {name: LocalArray.whole(value) for name, value in values(step).items()}
    metadata = Metadata(step=step, state={"s": step}, assets={"a": b"x"})
    CheckpointManager(root, keep_last=1).save(arrays, metadata).wait()


def crash_at(trial: int, *, counts_reading: bool = True) -> None:
    """Let this process end at its operation number `trial`; a write counts twice.

    Args:
        trial: which one.
        counts_reading: whether opening a file that is there is an operation.
    """
    count = 0

    def step() -> bool:
        nonlocal count
        count += 1
        return count == trial

    def end(name: str) -> None:
        os.write(1, f"{name} ".encode())
        os._exit(137)

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            reads = name == "open" and not arguments[1] & os.O_CREAT
            if (counts_reading or not reads) and step():
                end(name)
            if name == "pwrite" and step():
                file, data, position = arguments
                real(file, data[: len(data) // 2], position)
                end("half")
            return real(*arguments, **named)

        return operation

    for name in OPERATIONS:
        setattr(os, name, wrap(name, getattr(os, name)))


def check(root: Path, allowed: set[int]) -> int:
    """Make sure that what is left is whole; return the newest step."""
    assert mtron_ckpt.verify(root).ok
    checkpoint = mtron_ckpt.open(root)
    assert checkpoint.step in allowed, checkpoint.step
    for name, value in values(checkpoint.state["s"]).items():
        assert np.array_equal(checkpoint.read(name), value)
    manager = CheckpointManager(root)
    assert checkpoint.step == manager.steps()[-1]
    assert not list(root.glob("*.tmp-*")), "the next manager cleans up"
    return checkpoint.step


def main(directory: Path) -> None:
    """Run all trials."""
    template, root = directory / "template", directory / "root"
    save(template, 1)
    for trial in range(1, 1000):
        shutil.copytree(template, root)
        child = os.fork()
        if child == 0:
            crash_at(trial)
            save(root, 2)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(check(root, {1, 2}), flush=True)
        shutil.rmtree(root)
        if code == 0:
            return
        assert code == 137, code
    raise AssertionError("the save never ended")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
