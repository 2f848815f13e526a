"""What a rank sends per training step, as mtron counts it, beside a formula from the shapes alone.

A sum over g ranks of n bytes costs each rank 2 (g - 1) / g * n bytes sent, a gather of n bytes or
a sum that leaves every rank its part half of that.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch.distributed as dist
from outcome import Check, Outcome
from parallel_llama import SHAPES, llama_on_mesh, micro_batches
from ranks import Ranks
from rich.console import Console
from rich.table import Table
from shapes import Shape

from mtron_models import LlamaConfig
from mtron_optim import OptimConfig, build_optimizer, clip_
from mtron_parallel import ParallelConfig

MICRO_BATCHES, STEPS, BYTES_PER_NUMBER = 2, 3, 4
LIMIT = 1.02
LAYOUTS = {
    2: {
        "tp 2": ParallelConfig(tp=2),
        "tp 2, sequence parallel": ParallelConfig(tp=2, sequence_parallel=True),
        "dp 2, DDP": ParallelConfig(zero=0),
        "dp 2, ZeRO-1": ParallelConfig(zero=1),
        "dp 2, ZeRO-2": ParallelConfig(zero=2),
    },
    4: {
        "tp 4, sequence parallel": ParallelConfig(tp=4, sequence_parallel=True),
        "dp 4, ZeRO-1": ParallelConfig(zero=1),
        "tp 2 x dp 2, DDP": ParallelConfig(tp=2, zero=0),
        "tp 2 x dp 2, ZeRO-1": ParallelConfig(tp=2, zero=1),
        "tp 2 x dp 2, ZeRO-2": ParallelConfig(tp=2, zero=2),
    },
}
"""By number of ranks."""
LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")


def expected(shape: Shape, layout: ParallelConfig) -> dict[str, float]:
    """Return the bytes that a rank has to send in a step, by axis.

    Args:
        shape: of the model, and of a micro-batch.
        layout: with `dp` filled in.
    """
    parameters = LlamaConfig(**shape.model_fields()).parameter_shapes()
    norms = sum(prod(size) for size in parameters.values() if len(size) == 1)
    matrices = sum(prod(size) for size in parameters.values() if len(size) == 2)
    activations = shape.tokens_per_step * shape.hidden_size
    # Forward: after the embedding, after attention and feed-forward of each layer. Backward: before
    # attention and feed-forward of each layer, before the head. A sum, or a gather and its reverse.
    sums = 2 * (2 * shape.num_hidden_layers + 1)
    # Of every token: the largest logit, the sum of the exponentials, the label's logit.
    cross_entropy = 3 * shape.tokens_per_step
    along_tp = MICRO_BATCHES * (sums * activations + cross_entropy)
    if layout.sequence_parallel:
        along_tp += norms
    held = matrices // layout.tp + norms
    passes = {0: 2, 1: 2, 2: MICRO_BATCHES + 1}[layout.zero] / 2  # over the held numbers
    numbers = {"tp": (layout.tp, along_tp), "dp": (layout.dp, passes * held)}
    return {
        axis: 2 * (size - 1) / size * count * BYTES_PER_NUMBER
        for axis, (size, count) in numbers.items()
        if size > 1
    }


def measure(shape: Shape, layout: ParallelConfig) -> dict[str, Any]:
    """Train a few steps over all ranks; every rank calls this.

    Returns:
        Bytes per step that this rank has counted, by axis; what the formula says; and what all
        ranks together have sent over the loopback interface, headers included, if that is known.
    """
    parallel = llama_on_mesh(shape, layout)
    mesh, batches = parallel.mesh, micro_batches(shape, parallel.mesh)
    optimizer = build_optimizer(parallel.shards(), OptimConfig())

    def step() -> None:
        parallel.forward_backward([next(batches) for _ in range(MICRO_BATCHES)])
        clip_(parallel.shards(), parallel.grad_norm(), 1.0)
        optimizer.step()
        parallel.publish()

    step()
    parallel.wait()
    dist.barrier()
    before, loopback = dict(mesh.traffic.bytes_sent), _loopback_bytes()
    for _ in range(STEPS):
        step()
    parallel.wait()
    dist.barrier()
    on_loopback = None if loopback is None else (_loopback_bytes() - loopback) / STEPS
    counted = {
        axis: (total - before.get(axis, 0)) / STEPS
        for axis, total in mesh.traffic.bytes_sent.items()
    }
    formula = expected(shape, mesh.config)
    return {"counted": counted, "formula": formula, "loopback": on_loopback}


def _loopback_bytes() -> Any:
    return int(LOOPBACK.read_text()) if LOOPBACK.exists() else None


def run(jobs: Mapping[int, Ranks], quick: bool, console: Console) -> Outcome:
    """Measure all layouts on all jobs and print a table."""
    shape = SHAPES["tiny" if quick else "4M"]
    outcome = Outcome()
    for size, job in jobs.items():
        for name, layout in LAYOUTS[size].items():
            by_rank = job.run(measure, shape, layout)
            outcome.rows.append({"ranks": size, "layout": name, "by_rank": by_rank})
    console.print(
        f"\n[bold]bytes[/]: sent by a rank in a step of {MICRO_BATCHES} micro-batches of "
        f"{shape.batch_size} x {shape.seq_len} tokens, {shape.name} parameters; MB, and so many "
        "times the formula (the rank that sends most). Loopback: what the kernel has seen."
    )
    table = Table()
    for header in ("layout", "tp", "x", "dp", "x", "all axes", "loopback"):
        table.add_column(header, justify="left" if header == "layout" else "right")
    ratios: list[float] = []
    for row in outcome.rows:
        cells = []
        for axis in ("tp", "dp"):
            ratio = _ratio(row, axis)
            if ratio is None:
                cells += ["", ""]
                continue
            ratios.append(ratio)
            counted = max(rank["counted"][axis] for rank in row["by_rank"])
            cells += [f"{counted / 1e6:.3f}", f"{ratio:.4f}"]
        everything = max(sum(rank["counted"].values()) for rank in row["by_rank"])
        seen = row["by_rank"][0]["loopback"]
        cells += [f"{everything / 1e6:.3f}", f"{seen / row['ranks'] / 1e6:.3f}" if seen else ""]
        table.add_row(row["layout"], *cells)
    console.print(table)
    what = f"bytes, {shape.name}: times the formula, furthest from 1"
    furthest = max(ratios, key=lambda ratio: abs(ratio - 1))
    outcome.checks = [Check(what, furthest, least=2 - LIMIT, most=LIMIT)]
    return outcome


def _ratio(row: dict[str, Any], axis: str) -> float | None:
    """Return the ranks' most counted bytes over the formula's, None without such an axis."""
    formula = row["by_rank"][0]["formula"]
    if axis not in formula:
        return None
    return max(rank["counted"][axis] for rank in row["by_rank"]) / formula[axis]
