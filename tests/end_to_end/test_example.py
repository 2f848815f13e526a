"""The example behind `make pretrain`, with a training of two steps."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "pretrain.py"


@pytest.mark.slow
def test_every_stage_runs_and_the_second_time_says_so(tmp_path):
    command = [sys.executable, str(EXAMPLE), "run.steps=2", "schedule.warmup_steps=1"]
    for expected in ("validation loss", "done already, step 2 of 2"):
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert expected in result.stdout
        assert "all of them" in result.stdout
        assert "the model goes on after" in result.stdout
    assert (tmp_path / "runs" / "pretrain" / "curves.png").exists()
