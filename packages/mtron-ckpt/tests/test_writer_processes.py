"""Several writers as processes: killed at any moment, the last committed step stays."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROMPT_SECONDS = 15
"""Far more than the fraction of a second that it takes, far less than the time-outs."""


def run_script(name: str, *arguments: object, seconds: float = 250) -> list[str]:
    result = subprocess.run(
        [sys.executable, str(HERE / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def kill(directory: Path, seed: int, trials: int, seconds: float) -> None:
    lines = run_script("kill_together.py", directory, seed, trials, seconds=seconds)
    assert len(lines) == trials
    newest = [int(line.split()[0]) for line in lines]
    assert newest == sorted(newest)
    assert newest[-1] > 0
    for line in lines:
        _, who, duration, said = line.split(maxsplit=3) if "one" in line else [*line.split(), ""]
        if " ended " in said or who == "all":
            assert float(duration) < PROMPT_SECONDS


def test_kill_at_random_moments(tmp_path):
    kill(tmp_path, 0, 6, 250)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_at_many_random_moments(tmp_path):
    kill(tmp_path, 1, 100, 900)


def crash(directory: Path, rank: int, first: int, stride: int, seconds: float = 250) -> list[str]:
    """Return the operations that were not done, and what followed."""
    lines = run_script("crash_together.py", directory, rank, first, stride, seconds=seconds)
    outcomes = {" ".join(line.split()[-2:]) for line in lines}
    assert outcomes == {"failed 1", "saved 2"}
    return [line.split()[0] for line in lines]


@pytest.mark.parametrize(("rank", "stride"), [(0, 9), (2, 4)])
def test_crash_at_some_file_operations(tmp_path, rank, stride):
    """Not at the first few, which come before the others can know of the writer."""
    assert len(crash(tmp_path, rank, 6, stride)) > 4


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rank", [0, 2])
def test_crash_at_every_file_operation(tmp_path, rank):
    operations = crash(tmp_path, rank, 1, 1, 900)
    assert len(operations) > (80 if rank == 0 else 18)
    assert set(operations) >= {"open", "mkdir", "pwrite", "half", "fsync", "rename"}


@pytest.mark.parametrize("how", ["dead", "absent", "stopped"])
def test_the_end_of_a_process_does_not_wait_for_one_that_does_not_go_on(tmp_path, how):
    """The time-out is 600 seconds, of the stopped one 1."""
    (line,) = run_script("exit_together.py", tmp_path, how)
    seconds, steps = line.split(maxsplit=1)
    assert float(seconds) < PROMPT_SECONDS
    assert steps == "[1]"
