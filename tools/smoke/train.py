"""mtron-train alone: the command trains from a file, resumes, and refuses a misspelt key."""

import json
import subprocess
import sys
from pathlib import Path

import mtron_ckpt
from mtron_data import prepare, train_tokenizer

RUN = """
[run]
directory = "run"
steps = 6

[model]
model_type = "llama"
vocab_size = 300
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4

[data]
train = "corpus"
seq_len = 32
global_batch_size = 4

[optim]
kind = "adamw"
lr = 1e-3

[schedule]
kind = "cosine"
warmup_steps = 2

[checkpoint]
every_steps = 3
"""
COMMAND = Path(sys.executable).parent / "mtron-train"


def pretrain(*overrides: str) -> subprocess.CompletedProcess[str]:
    """Run the command on run.toml."""
    command = [COMMAND, "pretrain", "run.toml", *overrides]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> None:
    """Train six steps, then two more from the checkpoint."""
    text = "the quick brown fox jumps over the lazy dog. " * 10
    Path("text.jsonl").write_text((json.dumps({"text": text}) + "\n") * 20)
    train_tokenizer(["text.jsonl"], vocab_size=300, output="tokenizer")
    prepare(["text.jsonl"], tokenizer="tokenizer", output="corpus", workers=1)
    Path("run.toml").write_text(RUN)

    first = pretrain()
    assert first.returncode == 0, first.stderr
    assert mtron_ckpt.open("run/checkpoints").step == 6
    longer = pretrain("run.steps=8")
    assert longer.returncode == 0, longer.stderr
    assert mtron_ckpt.open("run/checkpoints").step == 8
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert records, "no metrics were written"

    refused = pretrain("optim.learning_rat=1")
    assert refused.returncode != 0
    assert "learning_rat" in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr, refused.stderr


if __name__ == "__main__":
    main()
