"""mtron-infer alone: the command continues a prompt, and does so in the same way again."""

import subprocess
import sys
from pathlib import Path

from tiny_checkpoint import write_checkpoint

from mtron_infer import Engine, EngineConfig, SamplingParams, load

COMMAND = Path(sys.executable).parent / "mtron-infer"


def main() -> None:
    """Greedy text from the command line is that of the engine."""
    write_checkpoint("checkpoints")
    loaded = load("checkpoints")
    engine = Engine(loaded.model, loaded.tokenizer, EngineConfig())
    params = SamplingParams(max_tokens=8, temperature=0.0)
    (completion,) = engine.generate(["the quick"], params)

    arguments = ["--prompt", "the quick", "--max-tokens", "8", "--temperature", "0"]
    command = [COMMAND, "generate", "checkpoints", *arguments]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert completion.text.strip() in shown.stdout, (completion.text, shown.stdout)


if __name__ == "__main__":
    main()
