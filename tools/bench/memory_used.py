"""The memory of a rank in a training step: every live tensor storage beside mtron's own plan."""

from collections.abc import Mapping
from typing import Any

import torch
from live_storages import LiveStorages
from outcome import Check, Outcome
from parallel_llama import SHAPES, llama_on_mesh, micro_batches
from ranks import Ranks
from rich.console import Console
from rich.table import Table
from shapes import Shape

from mtron_models import LlamaConfig
from mtron_optim import OptimConfig, build_optimizer, clip_
from mtron_parallel import ParallelConfig, ParallelModel, plan_memory

MICRO_BATCHES = 2
BUCKET_BYTES = 4 * 1024 * 1024
TOLERANCE = 0.05
STATE_MODULES = ("mtron_parallel.buckets", "mtron_parallel.gradients", "mtron_parallel.weights")
"""They sum gradients and share weights; their buffers are not activations."""

_ZERO = {"DDP": 0, "ZeRO-1": 1, "ZeRO-2": 2}
LAYOUTS = {
    2: {
        **{f"dp 2, {name}": {"zero": zero} for name, zero in _ZERO.items()},
        "tp 2": {"tp": 2},
        "tp 2, sequence parallel": {"tp": 2, "sequence_parallel": True},
    },
    4: {
        **{f"dp 4, {name}": {"zero": zero} for name, zero in _ZERO.items()},
        "tp 4, sequence parallel": {"tp": 4, "sequence_parallel": True},
        "tp 2 x dp 2, ZeRO-1": {"tp": 2, "zero": 1},
        "tp 2 x dp 2, ZeRO-2": {"tp": 2, "zero": 2},
    },
}
"""By number of ranks."""


def measure(shape: Shape, layout: ParallelConfig) -> dict[str, Any]:
    """Train over all ranks and watch this one's memory in the second step; every rank calls this.

    Returns:
        Peaks in bytes as measured, and the parts of the plan.
    """
    with LiveStorages(STATE_MODULES) as storages:
        parallel = llama_on_mesh(shape, layout)
        optimizer = build_optimizer(parallel.shards(), OptimConfig())
        batches = micro_batches(shape, parallel.mesh)
        _step(parallel, optimizer, [next(batches) for _ in range(MICRO_BATCHES)])
        given = [next(batches) for _ in range(MICRO_BATCHES)]
        storages.start()
        _step(parallel, optimizer, given)
        del given  # it is not state
        peak = storages.peak()
    plan = plan_memory(LlamaConfig(**shape.model_fields()), parallel.mesh.config, gloo=True)
    parts = ("weights", "gradients", "optimizer", "communication", "total")
    planned = {part: getattr(plan, f"{part}_bytes") for part in parts}
    return {"measured": vars(peak), "planned": planned}


def _step(parallel: ParallelModel, optimizer: torch.optim.Optimizer, batches: list[Any]) -> None:
    parallel.forward_backward(batches)
    clip_(parallel.shards(), parallel.grad_norm(), 1.0)
    optimizer.step()
    parallel.publish()
    parallel.wait()


def run(jobs: Mapping[int, Ranks], quick: bool, console: Console) -> Outcome:
    """Measure all layouts on all jobs and print a table."""
    shape = SHAPES["tiny" if quick else "4M"]
    outcome = Outcome()
    for size, job in jobs.items():
        for name, fields in LAYOUTS[size].items():
            layout = ParallelConfig(bucket_bytes=BUCKET_BYTES, **fields)
            by_rank = job.run(measure, shape, layout)
            worst = max(by_rank, key=lambda rank: abs(_ratio(rank) - 1))
            outcome.rows.append({"ranks": size, "layout": name, **worst})
    console.print(
        f"\n[bold]memory[/]: of a rank in a step of {MICRO_BATCHES} micro-batches of "
        f"{shape.batch_size} x {shape.seq_len} tokens, {shape.name} parameters, buckets of "
        f"{BUCKET_BYTES >> 20} MiB; MB at the peak, of the rank that is furthest from its plan. "
        "State: weights, gradients, optimizer, buffers of their communication. Activations: all "
        "else, with the temporary tensors of autograd."
    )
    console.print(_table(outcome.rows))
    furthest = max(outcome.rows, key=lambda row: abs(_ratio(row) - 1))
    what = f"memory, {shape.name}: state measured / planned, furthest from 1 ({furthest['layout']})"
    check = Check(what, _ratio(furthest), least=1 - TOLERANCE, most=1 + TOLERANCE)
    outcome.checks = [check]
    return outcome


def _ratio(row: dict[str, Any]) -> float:
    return row["measured"]["state"] / row["planned"]["total"]


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    parts = ("weights", "gradients", "optimizer", "communication")
    short = ("weights", "grads", "optim", "comm")
    headers = ("layout", *short, "planned", "measured", "ratio", "activations", "together")
    for header in headers:
        table.add_column(header, justify="left" if header == "layout" else "right")
    for row in rows:
        planned, measured = row["planned"], row["measured"]
        numbers = [*(planned[part] for part in parts), planned["total"], measured["state"]]
        others = [measured["others"], measured["together"]]
        table.add_row(
            row["layout"],
            *(f"{number / 1e6:.2f}" for number in numbers),
            f"{_ratio(row):.3f}",
            *(f"{number / 1e6:.2f}" for number in others),
        )
    return table
