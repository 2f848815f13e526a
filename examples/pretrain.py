"""`make pretrain`: from the standard library's sources to a model, its score and a sample.

Each stage is a command that is printed before it runs, so that the output is also a recipe. Run it
again and finished stages say so, an unfinished training resumes. Arguments such as run.steps=100
replace values of pretrain.toml.
"""

import gzip
import json
import lzma
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXAMPLES = Path(os.path.relpath(Path(__file__).parent))
CORPUS = Path("runs/corpus")
RUN = Path("runs/pretrain")
EVALUATION = RUN / "evaluation"
VOCAB_SIZE = 4096
PROMPT_END, PROMPT_CHARACTERS = "(self", 350
INTERRUPTED = 130


def main(overrides: Sequence[str]) -> int:
    """Run all stages, with `overrides` of the run's file, and return the exit code."""
    started = time.monotonic()
    try:
        prepare_data()
        run("mtron-train", "pretrain", EXAMPLES / "pretrain.toml", *overrides)
        evaluate()
        show_scores()
        show_sample()
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        return INTERRUPTED
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"\ndone in {minutes}:{seconds:02}: {RUN} has checkpoints, metrics and curves.png")
    return 0


def prepare_data() -> None:
    """Collect the corpus, train a tokenizer on it, and turn both into token datasets."""
    text, tokenizer = CORPUS / "text", CORPUS / "tokenizer"
    run(sys.executable, EXAMPLES / "standard_library.py", text)
    train, size = text / "train.jsonl", str(VOCAB_SIZE)
    run("mtron-data", "train-tokenizer", train, "--vocab-size", size, "--output", tokenizer)
    for part in ("train", "heldout"):
        source, output = text / f"{part}.jsonl", CORPUS / part
        run("mtron-data", "prepare", source, "--tokenizer", tokenizer, "--output", output)


def evaluate() -> None:
    """Measure perplexity and bits per byte of every held-out file."""
    data = CORPUS / "text" / "heldout.jsonl"
    checkpoints = RUN / "checkpoints"
    run(
        *("mtron-eval", "run", checkpoints, "--tasks", "perplexity", "--data", data),
        *("--output", EVALUATION, "--overwrite"),
    )


def show_scores() -> None:
    """Print the model's bits per byte beside those of two compressors, file by file."""
    task = json.loads((EVALUATION / "results.json").read_text())["tasks"]["perplexity"]
    documents = read_jsonl(CORPUS / "text" / "heldout.jsonl")
    texts = {document["path"]: document["text"].encode() for document in documents}
    print("\nbits per byte of text that the model has never seen")
    print(f"{'held-out file':44} {'bytes':>8} {'mtron':>7} {'gzip -9':>8} {'xz -9':>7}")
    sizes, bits = [], []
    for row in task["documents"]:
        path, size = row["path"], row["bytes"]
        sizes.append(size)
        bits.append((row["bits_per_byte"] * size, *compressed_bits(texts[path])))
        print(score_line(path, size, bits[-1]))
    print(
        score_line("all of them", sum(sizes), [sum(column) for column in zip(*bits, strict=True)])
    )


def score_line(name: str, size: int, bits: Sequence[float]) -> str:
    """One line of the table: bytes, and bits per byte of the model, gzip and xz."""
    model, gz, xz = (count / size for count in bits)
    return f"{name[-44:]:44} {size:8} {model:7.3f} {gz:8.3f} {xz:7.3f}"


def compressed_bits(data: bytes) -> tuple[int, int]:
    """Bits that `gzip -9` and `xz -9` need for `data`."""
    return 8 * len(gzip.compress(data, 9)), 8 * len(lzma.compress(data, preset=9))


def show_sample() -> None:
    """Print how the model goes on in the middle of a held-out file."""
    document = max(read_jsonl(CORPUS / "text" / "heldout.jsonl"), key=lambda d: len(d["text"]))
    prompt = excerpt(document["text"])
    command = (
        *("mtron-infer", "generate", RUN / "checkpoints", "--prompt-file", "-"),
        *("--max-tokens", "110", "--temperature", "0.5", "--seed", "1"),
    )
    show(command)
    finished = subprocess.run(
        [program(command[0]), *map(str, command[1:])],
        input=prompt.encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    print(f"\nfrom {document['path']}, which the model has never seen:\n{indent(prompt)}")
    print(f"\nand the model goes on after the last character:\n{indent(finished.stdout.decode())}")


def excerpt(text: str) -> str:
    """Return some lines from the middle of a source file, up to a method's first parameter."""
    found = text.find(PROMPT_END, len(text) // 2)
    end = len(text) // 2 if found < 0 else found + len(PROMPT_END)
    return text[text.rfind("\n", 0, max(0, end - PROMPT_CHARACTERS)) + 1 : end]


def indent(text: str) -> str:
    """Set `text` off from what the program says itself."""
    return "\n".join(f"  | {line}" for line in text.rstrip("\n").splitlines())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def program(name: object) -> str:
    """Return the path of a program of this environment."""
    path = Path(sys.executable).parent / str(name)
    return str(path) if path.exists() else str(name)


def show(command: Sequence[object]) -> None:
    """Print a command as one would type it."""
    words = ["python" if word == sys.executable else str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)


def run(*command: object) -> None:
    """Print and run a command of this environment; it must succeed."""
    show(command)
    subprocess.run([program(command[0]), *map(str, command[1:])], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
