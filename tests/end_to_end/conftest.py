"""One small run through all command lines, shared by the tests of this directory."""

import json
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

TOML = """
[run]
directory = "{directory}"
steps = 40
seed = 1
[model]
model_type = "llama"
vocab_size = 512
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 128
tie_word_embeddings = true
[data]
train = "{root}/train"
validation = "{root}/heldout"
seq_len = 64
global_batch_size = 8
[optim]
kind = "muon"
lr = 0.01
[schedule]
kind = "wsd"
warmup_steps = 5
[checkpoint]
every_steps = 10
[validation]
max_samples = 16
[log]
tensorboard = false
plot = false
"""


class CommandLines:
    """Runs the programs `mtron-train` and so on in new processes."""

    @staticmethod
    def call(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        module = program.replace("-", "_")
        code = f"from {module}.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )

    @classmethod
    def succeed(cls, program: str, *arguments: object) -> str:
        """Run a program that must succeed, and return what it printed."""
        result = cls.call(program, *arguments)
        assert result.returncode == 0, f"{program} {arguments}\n{result.stdout}\n{result.stderr}"
        return result.stdout


@dataclass(frozen=True)
class TinyRun:
    """Paths of a run that has finished."""

    root: Path
    toml: Path
    directory: Path

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"


def write_corpus(root: Path) -> None:
    """A small part of the standard library as train.jsonl and heldout.jsonl."""
    folder = Path(sysconfig.get_paths()["stdlib"]) / "json"
    sources = sorted(folder.glob("*.py"))
    parts = {"train": sources[1:], "heldout": sources[:1]}
    for name, paths in parts.items():
        lines = [json.dumps({"text": p.read_text("utf-8"), "path": p.name}) for p in paths]
        (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def cli() -> type[CommandLines]:
    return CommandLines


@pytest.fixture(scope="session")
def tiny_run(cli, tmp_path_factory) -> TinyRun:
    """Tokenizer, datasets and 40 steps of training on a few real source files."""
    root = tmp_path_factory.mktemp("tiny")
    write_corpus(root)
    train = root / "train.jsonl"
    tokenizer = root / "tokenizer"
    cli.succeed("mtron-data", "train-tokenizer", train, "--vocab-size", 512, "--output", tokenizer)
    for name in ("train", "heldout"):
        cli.succeed(
            "mtron-data",
            "prepare",
            root / f"{name}.jsonl",
            "--tokenizer",
            tokenizer,
            "--output",
            root / name,
        )
    toml, directory = root / "run.toml", root / "run"
    toml.write_text(TOML.format(root=root, directory=directory))
    cli.succeed("mtron-train", "pretrain", toml)
    return TinyRun(root, toml, directory)
