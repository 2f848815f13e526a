"""kill -9 of one rank or of all, some of them during a save: nothing partial, no step lost."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtron_ckpt import CheckpointManager, verify
from mtron_ckpt import open as open_checkpoint

COMMAND = [sys.executable, "-m", "mtron_train", "pretrain"]


def start(toml, nproc):
    return subprocess.Popen(
        [*COMMAND, str(toml), "--nproc", str(nproc)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ranks_of(launcher):
    """Process ids of the ranks that a launcher has started, by rank."""
    found = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdecimal():
            continue
        try:
            status = (directory / "stat").read_text().rpartition(")")[2].split()
            environment = (directory / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((e for e in environment if e.startswith(b"RANK=")), None)
        if int(status[1]) == launcher.pid and rank is not None:
            found[int(rank.partition(b"=")[2])] = int(directory.name)
    return found


def saving(root):
    return root.exists() and any(".tmp-" in path.name for path in root.iterdir())


def kill_once(toml, root, nproc, rng, during_save):
    """Start the run, kill a rank or all; return whether a save was under way."""
    before = sorted(root.glob("step-????????")) if root.exists() else []
    launcher = start(toml, nproc)
    deadline = time.monotonic() + 120
    while launcher.poll() is None and time.monotonic() < deadline:
        if sorted(root.glob("step-????????")) != before:
            break
        time.sleep(0.01)
    ranks = ranks_of(launcher)
    assert len(ranks) == nproc, "the run ended before it could be killed"
    victims = rng.choice([[rng.randrange(nproc)], list(ranks)])
    if during_save:
        while launcher.poll() is None and not saving(root):
            pass
    else:
        time.sleep(rng.uniform(0.0, 0.5))
    assert launcher.poll() is None, "the run ended before it could be killed"
    for victim in victims:
        os.kill(ranks[victim], signal.SIGKILL)
    cut = saving(root)
    _, message = launcher.communicate(timeout=30)
    assert launcher.returncode == 137, message
    assert "SIGKILL" in message, message
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    return cut


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("layout", "nproc", "times", "during_save"),
    [
        ("tp = 2", 2, 1, 1),
        pytest.param("tp = 2\nzero = 2", 4, 15, 8, marks=pytest.mark.slow),
        pytest.param("zero = 1", 2, 15, 8, marks=pytest.mark.slow),
    ],
)
def test_killed_ranks_lose_nothing(tiny_run, tmp_path, layout, nproc, times, during_save):
    directory = tmp_path / "run"
    text = tiny_run.toml.read_text().replace(str(tiny_run.directory), str(directory))
    text = text.replace('kind = "muon"', 'kind = "adamw"').replace("lr = 0.01", "lr = 0.003")
    text = text.replace("every_steps = 10", "every_steps = 5")
    text = text.replace("steps = 40", "steps = 100000")
    toml = tmp_path / "run.toml"
    toml.write_text(f"{text}\n[parallel]\n{layout}\n")
    root, rng, cut, newest = directory / "checkpoints", random.Random(times), 0, 0
    for attempt in range(times):
        cut += kill_once(toml, root, nproc, rng, during_save=attempt < during_save)
        steps = CheckpointManager(root).steps()
        assert steps
        assert steps[-1] > newest, "every start got further than the one before"
        newest = steps[-1]
        assert verify(root).ok
        assert open_checkpoint(root).step == newest
        assert not saving(root), "the next manager has cleaned up"
    assert cut >= during_save // 2 + 1 or times == 1
