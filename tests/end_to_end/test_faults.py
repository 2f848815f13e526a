"""A rank that raises, dies or sleeps ends the job in time, and the message says which and where."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("faulty_rank.py")
LIMIT_SECONDS = 3.0
LAUNCH = (
    "import sys; from mtron_parallel import launch;"
    " sys.exit(launch([sys.executable, *sys.argv[2:]], int(sys.argv[1])))"
)


def run_with(fault, rank, toml, nproc, mark, *overrides):
    """Run a job in which one rank has a fault in its fourth step; return how it ended, and when."""
    command = [sys.executable, "-c", LAUNCH, str(nproc), str(SCRIPT), fault, str(rank), "3", mark]
    result = subprocess.run(
        [*command, "pretrain", str(toml), "optim.kind=adamw", *overrides],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return result, time.time()


@pytest.mark.parametrize(
    ("fault", "nproc", "rank", "layout"),
    [
        pytest.param("raise", 2, 1, "parallel.tp=2", marks=pytest.mark.slow),
        pytest.param("die", 2, 0, "parallel.zero=1", marks=pytest.mark.slow),
        ("sleep", 2, 1, "parallel.tp=2"),
        pytest.param("raise", 4, 2, "parallel.tp=2", marks=pytest.mark.slow),
        pytest.param("die", 4, 3, "parallel.tp=2", marks=pytest.mark.slow),
        pytest.param("sleep", 4, 0, "parallel.tp=2", marks=pytest.mark.slow),
    ],
)
def test_a_faulty_rank_ends_the_job(tiny_run, tmp_path, fault, nproc, rank, layout):
    limit, directory = f"parallel.timeout_seconds={LIMIT_SECONDS}", f"run.directory={tmp_path}/run"
    mark = tmp_path / "mark"
    result, end = run_with(fault, rank, tiny_run.toml, nproc, str(mark), layout, limit, directory)
    assert mark.exists(), result.stderr
    assert end - mark.stat().st_mtime < LIMIT_SECONDS + 5
    assert result.returncode != 0
    message = " ".join(result.stderr.split())
    assert "Traceback" not in message
    assert f"rank {rank}" in message, message
    if fault == "raise":
        assert "the disk of this rank is gone" in message
        assert "faulty_rank.py" in message
    if fault == "die":
        assert "SIGKILL" in message
    if fault == "sleep":
        assert "faulty_rank.py" in message
        assert "in sleep" in message


def test_a_job_on_two_processes_from_the_command_line(cli, tiny_run, tmp_path):
    arguments = ["pretrain", tiny_run.toml, "optim.kind=adamw", "parallel.tp=2", "run.steps=6"]
    arguments += ["checkpoint.every_steps=3", f"run.directory={tmp_path / 'run'}", "--nproc", "2"]
    first = cli.succeed("mtron-train", *arguments)
    assert "validation loss" in first
    again = cli.succeed("mtron-train", *arguments)
    assert "done already" in again
    assert cli.succeed("mtron-ckpt", "verify", tmp_path / "run/checkpoints")
    refused = cli.call("mtron-train", *arguments[:3], "parallel.tp=3", "--nproc", "2")
    assert refused.returncode == 1
    assert "parallel.tp: 3 does not divide num_attention_heads = 4; use 1 or 2" in refused.stderr
