"""kill -9 at random moments, some of them during a save: the run ends with the same bits."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtron_ckpt import open as open_checkpoint
from mtron_ckpt import verify

COMMAND = [sys.executable, "-c", "from mtron_train.cli import main; main()", "pretrain"]


def start(file):
    return subprocess.Popen(
        [*COMMAND, str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def finish(file):
    result = subprocess.run([*COMMAND, str(file)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def content(root):
    checkpoint = open_checkpoint(root)
    arrays = {name: checkpoint.read(name).tobytes() for name in checkpoint.names()}
    values = ("step", "loss/train", "loss/validation", "grad_norm", "learning_rate")
    lines = (root.parent / "metrics.jsonl").read_text().splitlines()
    losses = [{k: v for k, v in json.loads(line).items() if k in values} for line in lines]
    return checkpoint.step, arrays, checkpoint.state, losses


def saving(root):
    return any(path.name.find(".tmp-") > 0 for path in root.iterdir()) if root.exists() else False


def kill_at_random(file, root, rng, during_save):
    """Start the run, kill it, and return whether a save was under way when it died."""
    before = sorted(root.glob("step-*")) if root.exists() else []
    process = start(file)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if sorted(root.glob("step-*")) != before:  # it trains, and has saved since the start
            break
        time.sleep(0.005)
    if during_save:
        while process.poll() is None and not saving(root):
            pass
    else:
        time.sleep(rng.uniform(0.0, 0.4))
    process.kill()
    assert process.wait() == -9, "the run ended before it could be killed"
    return saving(root)


def kill_many_times(file, root, times, during_save, seed):
    """Kill the run `times` times; return how often a save was cut off."""
    rng, cut = random.Random(seed), 0
    for attempt in range(times):
        cut += kill_at_random(file, root, rng, during_save=attempt < during_save)
        committed = sorted(root.glob("step-????????"))
        for path in committed:
            assert verify(path).ok, path
        if committed:
            assert open_checkpoint(root).path == committed[-1]
    return cut


@pytest.mark.parametrize(
    ("times", "during_save"), [(3, 1), pytest.param(20, 8, marks=pytest.mark.slow)]
)
def test_killed_runs_end_with_the_same_bits(tiny_run, tmp_path, times, during_save):
    steps = 60 + 60 * times
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for directory in (straight, killed):
        text = tiny_run.toml.read_text()
        text = text.replace(str(tiny_run.directory), str(directory))
        text = text.replace("steps = 40", f"steps = {steps}").replace(
            "every_steps = 10", "every_steps = 5"
        )
        text = text.replace("tensorboard = false", "every_steps = 1\ntensorboard = false")
        Path(f"{directory}.toml").write_text(text)
    finish(f"{straight}.toml")
    cut = kill_many_times(f"{killed}.toml", killed / "checkpoints", times, during_save, seed=times)
    assert cut >= during_save // 2 + 1
    finish(f"{killed}.toml")
    expected, found = content(straight / "checkpoints"), content(killed / "checkpoints")
    assert found[0] == expected[0] == steps
    assert [n for n in expected[1] if expected[1][n] != found[1][n]] == []
    assert found[2:] == expected[2:]
    assert not saving(killed / "checkpoints")
