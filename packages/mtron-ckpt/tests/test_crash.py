"""kill -9 at any moment: the last committed step stays, nothing partial is listed."""

import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mtron_ckpt
from mtron_ckpt import CheckpointManager

HERE = Path(__file__).parent
SCRIPT = HERE / "save_forever.py"
LONGEST_SECONDS = 0.25


def kill_while_saving(root: Path, rng: random.Random) -> int:
    """Let a process save, kill it at a random moment, return the last step it reported."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(root)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()  # a first save has begun
    time.sleep(rng.random() * LONGEST_SECONDS)
    process.send_signal(signal.SIGKILL)
    lines = process.stdout.read().splitlines()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    return max((int(line.split()[1]) for line in lines if line.startswith("saved")), default=0)


def check(root: Path, reported: int) -> int:
    """Make sure that all that is listed is whole; return the newest step."""
    values = runpy.run_path(str(SCRIPT))["values"]
    steps = CheckpointManager(root).steps()
    assert not list(root.glob("*.tmp-*"))
    for step in steps:
        checkpoint = mtron_ckpt.open(root / f"step-{step:08d}")
        assert checkpoint.state == {"train": {"step": step}}
        for name, value in values(step).items():
            assert np.array_equal(checkpoint.read(name), value)
    newest = max(steps, default=0)
    assert newest >= reported
    if steps:
        assert mtron_ckpt.open(root).step == newest
        assert mtron_ckpt.verify(root).ok
    return newest


def run_trials(root: Path, seed: int, count: int) -> None:
    rng = random.Random(seed)
    newest = 0
    for _ in range(count):
        reported = kill_while_saving(root, rng)
        found = check(root, reported)
        assert found >= newest
        newest = found
    assert newest > 0


def test_kill_at_random_moments(tmp_path):
    run_trials(tmp_path / "root", 0, 6)


@pytest.mark.slow
def test_kill_at_many_random_moments(tmp_path):
    run_trials(tmp_path / "root", 1, 200)


def test_crash_at_every_file_operation(tmp_path):
    script = HERE / "crash_everywhere.py"
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    trials = [line.split() for line in result.stdout.splitlines()]
    newest = [int(trial[-1]) for trial in trials]
    assert newest.count(1) > 40  # before the rename
    assert newest.count(2) > 10  # after it, while LATEST is written and the old step deleted
    operations = {"open", "mkdir", "pwrite", "half", "fsync", "rename", "replace", "rmdir"}
    assert {trial[0] for trial in trials} >= operations
