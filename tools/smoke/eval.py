"""mtron-eval alone: the command writes the perplexity of a text as JSON."""

import json
import subprocess
import sys
from pathlib import Path

from tiny_checkpoint import write_checkpoint

COMMAND = Path(sys.executable).parent / "mtron-eval"


def main() -> None:
    """An untrained model is about as good as guessing: some 300 equally likely tokens."""
    write_checkpoint("checkpoints")
    arguments = ["--tasks", "perplexity", "--data", "text.txt", "--output", "results"]
    command = [COMMAND, "run", "checkpoints", *arguments]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    (report,) = Path("results").glob("*.json")
    numbers = json.dumps(json.loads(report.read_text()))
    assert "perplexity" in numbers, numbers


if __name__ == "__main__":
    main()
