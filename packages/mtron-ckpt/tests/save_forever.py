"""Saves step after step until it is killed: `python save_forever.py ROOT`."""

import sys
from pathlib import Path

import numpy as np

from mtron_ckpt import CheckpointManager, LocalArray, Metadata


def values(step: int) -> dict[str, np.ndarray]:
    """Values that only this step has."""
    rng = np.random.default_rng(step)
    arrays = {f"param/{n}": rng.integers(0, 2**32, 1 << 20, dtype=np.uint32) for n in range(3)}
    return arrays | {"param/small": rng.standard_normal(5)}


def main(root: Path) -> None:
    """Announce each step before it is saved and after it was committed."""
    with CheckpointManager(root, keep_last=2) as manager:
        first = max(manager.steps(), default=0) + 1
        for step in range(first, first + 10_000):
            arrays = {name: LocalArray.whole(value) for name, value in values(step).items()}
            print("saving", step, flush=True)
            manager.save(arrays, Metadata(step=step, state={"train": {"step": step}})).wait()
            print("saved", step, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
