"""Tokens per second of a training step on CPU: mtron, plain PyTorch and transformers.

    python tools/bench/train_step.py             # 7M and 32M parameters, about ten minutes
    python tools/bench/train_step.py --quick     # a tiny model: does it still run?
    python tools/bench/train_step.py --sizes 7M --rounds 9 --output step.json

The contenders run in rounds, one after the other, each in a process of its own; a ratio is the
median over the rounds. Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, REFERENCE
from machine import Peak, describe, measure_peak
from rich.console import Console
from rich.table import Table
from shapes import QUICK_SHAPES, SHAPES, Shape
from workers import Worker

from mtron_models import LlamaConfig, flops_per_token, num_parameters

LOOP, BARE = list(CONTENDERS)[:2]


@dataclass(frozen=True)
class Result:
    """What one contender did: the median step of each round, in seconds."""

    rounds: list[float]
    warm_up_seconds: float
    loss: float

    @property
    def seconds(self) -> float:
        return statistics.median(self.rounds)

    def speed_up_over(self, other: "Result") -> float:
        """Return how many times faster than `other`, by the median over paired rounds."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(theirs / ours for ours, theirs in pairs)


def measure(shape: Shape, names: list[str], options: argparse.Namespace) -> dict[str, Result]:
    """Run the contenders of one shape in interleaved rounds."""
    workers: dict[str, Worker] = {}
    rounds: dict[str, list[float]] = {name: [] for name in names}
    try:
        for name in names:
            print(f"{shape.name}: warming up {name.strip()}", file=sys.stderr, flush=True)
            workers[name] = Worker(name, shape, options.threads)
        for index in range(options.rounds):
            print(f"{shape.name}: round {index + 1}", file=sys.stderr, flush=True)
            for name in names[index % len(names) :] + names[: index % len(names)]:
                rounds[name].append(statistics.median(workers[name].run(options.steps)))
        return {n: Result(rounds[n], w.warm_up_seconds, w.loss) for n, w in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()


def report(shape: Shape, results: dict[str, Result], peak: Peak, console: Console) -> list[Any]:
    """Print the table of one shape and return its rows as plain data."""
    config = LlamaConfig(**shape.model_fields())
    flops = flops_per_token(config, shape.seq_len) * shape.tokens_per_step
    console.print(
        f"\n[bold]{shape.name}[/]: {num_parameters(config) / 1e6:.1f}M parameters, {shape}"
    )
    table = Table()
    for header in ("", "tokens/s", "ms/step", "x HF", "% of best", "% of mm", "warm-up s", "loss"):
        table.add_column(header, justify="left" if not header else "right")
    rows = []
    for name, result in results.items():
        row = {
            "contender": name.strip(),
            "tokens_per_second": shape.tokens_per_step / result.seconds,
            "milliseconds_per_step": result.seconds * 1e3,
            "speed_up": result.speed_up_over(results[REFERENCE]),
            "share_of_best_peak": flops / result.seconds / peak.best,
            "share_of_torch_peak": flops / result.seconds / peak.torch,
            "warm_up_seconds": result.warm_up_seconds,
            "loss": result.loss,
        }
        rows.append({"shape": shape.name, **row, "rounds": result.rounds})
        table.add_row(
            name,
            f"{row['tokens_per_second']:,.0f}",
            f"{row['milliseconds_per_step']:.1f}",
            f"{row['speed_up']:.2f}",
            f"{100 * row['share_of_best_peak']:.0f}",
            f"{100 * row['share_of_torch_peak']:.0f}",
            f"{row['warm_up_seconds']:.1f}",
            f"{row['loss']:.3f}",
        )
    console.print(table)
    if LOOP in results and BARE in results:
        added = results[BARE].speed_up_over(results[LOOP]) - 1
        console.print(f"mtron's training loop adds {100 * added:+.1f}% to its own model's step.")
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model, two short rounds")
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="contenders whose name has TEXT")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps per contender and round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="also write the numbers as JSON")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps = 2, 2
    return options


def main() -> None:
    import torch

    options = parse_arguments()
    torch.set_num_threads(options.threads)
    shapes = list(QUICK_SHAPES.values()) if options.quick else [SHAPES[s] for s in options.sizes]
    names = [
        name
        for name in CONTENDERS
        if name == REFERENCE or not options.only or any(text in name for text in options.only)
    ]
    console = Console(width=110)
    console.print(f"Training on {describe(options.threads)}")
    peak = measure_peak(0.2 if options.quick else 2.0)
    console.print(
        "x HF: times as fast as eager transformers. % of best, % of mm: operations of the model as "
        "a share of these rates:"
    )
    console.print(
        f"float32 matrix products: {peak.best / 1e9:.0f} GFLOP/s at best, "
        f"{peak.torch / 1e9:.0f} by torch.mm. AdamW, gradients clipped, float32, "
        f"{options.rounds} rounds of {options.steps} steps."
    )
    rows: list[Any] = []
    for shape in shapes:
        rows += report(shape, measure(shape, names, options), peak, console)
    if options.output:
        numbers = {"machine": describe(options.threads), "peak": vars(peak), "rows": rows}
        options.output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
