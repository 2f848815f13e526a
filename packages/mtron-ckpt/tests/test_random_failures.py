"""Writers that fail at random and try again: they always find together, and nothing is left."""

import random
import time

import numpy as np
import pytest

import mtron_ckpt
from mtron_ckpt import CheckpointManager, LocalArray, Metadata, Writers

COUNT = 4
STEPS = 6
ATTEMPTS = 200


class Broken:
    """Values whose reading fails like a disk."""

    shape, dtype = (1, 500), np.dtype(float)

    def __array__(self, dtype=None, copy=None):
        raise OSError(5, "broken source")


def arrays_of(rank: int, step: int, rng: random.Random):
    """What a writer holds; once in seven times, something is wrong with it or it has changed."""
    row = np.full((1, 500), rank + step, float)
    fate = rng.random()
    arrays = {
        "param/w": LocalArray(Broken() if fate < 0.05 else row, (COUNT, 500), (rank, 0)),
        "param/b": LocalArray.whole(np.full(300, float(step))),
    }
    if 0.05 < fate < 0.1:
        arrays["param/object"] = LocalArray.whole(np.array([None]))
    if 0.1 < fate < 0.15:
        arrays[f"param/extra{rank}"] = LocalArray.whole(np.arange(1000))
    return arrays


def save_until_saved(manager: CheckpointManager, rank: int, step: int, rng: random.Random) -> None:
    for _ in range(ATTEMPTS):
        if rng.random() < 0.3:
            time.sleep(rng.random() * 0.02)
        try:
            manager.save(arrays_of(rank, step, rng), Metadata(step=step)).wait()
            return
        except FileExistsError:  # the others have succeeded with what this one had left
            return
        except (OSError, ValueError) as error:
            known = "broken source", "object", "changed", "overlap"
            assert any(part in str(error) for part in known), error
    raise AssertionError("never saved")


def run(root, seed: int, together) -> None:
    def one(rank: int) -> None:
        rng = random.Random(seed * COUNT + rank)
        manager = CheckpointManager(root, writers=Writers(rank, COUNT, "session", 100))
        for step in range(STEPS):
            save_until_saved(manager, rank, step, rng)

    assert together(one, COUNT, seconds=200) == [None] * COUNT
    assert not list(root.glob("*.tmp-*"))
    assert CheckpointManager(root).steps() == list(range(STEPS))
    assert mtron_ckpt.verify(root).ok
    for step in range(STEPS):
        checkpoint = mtron_ckpt.open(root / f"step-{step:08d}")
        assert checkpoint.read("param/w")[:, 3].tolist() == [step + rank for rank in range(COUNT)]
        assert (checkpoint.read("param/b") == step).all()


@pytest.mark.parametrize("seed", range(4))
def test_random_failures(tmp_path, together, seed):
    run(tmp_path, seed, together)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_random_failures(tmp_path, together):
    for seed in range(100, 200):
        run(tmp_path / str(seed), seed, together)
