"""A whole data-parallel training step: mtron beside torch's `fully_shard` and DDP.

All train the same model code, with the same initial weights and batches, by fused AdamW: forward,
backward, sum of the gradients over the ranks, update, and the new weights on every rank.
"""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from outcome import Check, Outcome
from parallel_llama import SHAPES, llama_on_mesh, micro_batches, tokens_of_rank, whole_llama
from ranks import Ranks, take_turns, times_as_fast
from rich.console import Console
from rich.table import Table
from shapes import Shape
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mtron_models import LlamaConfig, num_parameters
from mtron_optim import OptimConfig, build_optimizer
from mtron_parallel import ParallelConfig

LEARNING_RATE, BETAS, EPS = 1e-3, (0.9, 0.95), 1e-8
COMPUTE, MESSAGES = "compute alone", "all-reduce alone"


@dataclass(frozen=True)
class Contender:
    """Trains a model.

    Attributes:
        step: takes a step.
        settle: waits for what a step has left under way.
        loss: returns this rank's share of the newest step's loss; the shares add up to the mean.
    """

    step: Callable[[], object]
    loss: Callable[[], float]
    settle: Callable[[], None] = lambda: None


def mtron(shape: Shape, zero: Any) -> Contender:
    """Train by mtron, with the stage of ZeRO."""
    parallel = llama_on_mesh(shape, ParallelConfig(zero=zero))
    config = OptimConfig(lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=0.0)
    optimizer = build_optimizer(parallel.shards(), config)
    batches = micro_batches(shape, parallel.mesh)
    losses = []

    def step() -> None:
        losses.append(parallel.forward_backward([next(batches)]).loss)
        optimizer.step()
        parallel.publish()

    return Contender(step, lambda: losses[-1] / parallel.mesh.size("dp"), parallel.wait)


class TrainLoss(nn.Module):
    """The model's loss as a `forward`, which torch's wrappers need."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over this rank's tokens; torch averages over ranks."""
        weights = torch.full(labels.shape, 1 / labels.numel())
        return self.model.train_loss(tokens, labels, weights)


def torch_loop(shape: Shape, model: nn.Module, optimizer: torch.optim.Optimizer) -> Contender:
    """Train by the usual loop."""
    size = dist.get_world_size()
    batches = tokens_of_rank(shape, dist.get_rank(), size)
    losses = []

    def step() -> None:
        loss = model(*next(batches))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    return Contender(step, lambda: losses[-1] / size)


def adamw() -> dict[str, Any]:
    """Return the optimizer's arguments."""
    return {"lr": LEARNING_RATE, "betas": BETAS, "eps": EPS, "weight_decay": 0.0, "fused": True}


def fsdp(shape: Shape, reshard: bool) -> Contender:
    """Train by `fully_shard`, per layer and root.

    Args:
        shape: of the model.
        reshard: whether weights are dropped after the forward and gathered anew (ZeRO-3), or kept
            until the backward has used them.
    """
    model: Any = TrainLoss(whole_llama(shape))
    devices = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers.values():
        fully_shard(layer, mesh=devices, reshard_after_forward=reshard)
    fully_shard(model, mesh=devices, reshard_after_forward=reshard)
    return torch_loop(shape, model, torch.optim.AdamW(model.parameters(), **adamw()))


def ddp(shape: Shape, sharded_optimizer: bool) -> Contender:
    """Train by `DistributedDataParallel`, with every rank's own AdamW or a divided one."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = nn.parallel.DistributedDataParallel(
        TrainLoss(whole_llama(shape)), gradient_as_bucket_view=True
    )
    if not sharded_optimizer:
        return torch_loop(shape, model, torch.optim.AdamW(model.parameters(), **adamw()))
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), torch.optim.AdamW, parameters_as_bucket_view=True, **adamw()
    )
    return torch_loop(shape, model, optimizer)


def compute_alone(shape: Shape) -> Contender:
    """Train a rank's batch without the others, and update a rank's share of the weights."""
    model = TrainLoss(whole_llama(shape))
    size, rank = dist.get_world_size(), dist.get_rank()
    parameters = list(model.parameters())
    by_size = sorted(parameters, key=torch.numel, reverse=True)
    return torch_loop(shape, model, torch.optim.AdamW(by_size[rank::size], **adamw()))


def all_reduce_alone(shape: Shape) -> Contender:
    """Sum as many numbers over the ranks as the model has; ZeRO-1 sends as much."""
    numbers = torch.zeros(num_parameters(LlamaConfig(**shape.model_fields())))
    return Contender(lambda: dist.all_reduce(numbers), lambda: 0.0)


OURS, OURS_DDP = "mtron, ZeRO-1", "mtron, DDP"
TORCH_DDP = "DistributedDataParallel"
SHARDED_DDP = "  + ZeroRedundancyOptimizer"
FSDP_KEEPS, FSDP = "fully_shard, weights kept", "fully_shard"
CONTENDERS: dict[str, Callable[[Shape], Contender]] = {
    OURS: lambda shape: mtron(shape, 1),
    OURS_DDP: lambda shape: mtron(shape, 0),
    "mtron, ZeRO-2": lambda shape: mtron(shape, 2),
    FSDP: lambda shape: fsdp(shape, reshard=True),
    FSDP_KEEPS: lambda shape: fsdp(shape, reshard=False),
    TORCH_DDP: lambda shape: ddp(shape, sharded_optimizer=False),
    SHARDED_DDP: lambda shape: ddp(shape, sharded_optimizer=True),
    COMPUTE: compute_alone,
    MESSAGES: all_reduce_alone,
}
MAIN = (OURS, FSDP_KEEPS, SHARDED_DDP, COMPUTE, MESSAGES)
EVERYONE = tuple(CONTENDERS)


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        shape: of the model; its batch is a rank's.
        names: of the contenders.
        rounds: how often each has its turn.
        steps: in a turn.
    """

    shape: Shape
    names: tuple[str, ...]
    rounds: int
    steps: int


FEW_TOKENS = replace(SHAPES["4M"], batch_size=1)
CASES = {
    2: (
        Case(FEW_TOKENS, EVERYONE, rounds=7, steps=3),
        Case(SHAPES["4M"], EVERYONE, rounds=5, steps=2),
        Case(SHAPES["12M"], MAIN, rounds=3, steps=2),
    ),
    4: (
        Case(FEW_TOKENS, EVERYONE, rounds=5, steps=2),
        Case(SHAPES["4M"], MAIN, rounds=3, steps=2),
    ),
}
"""By number of ranks."""
QUICK_CASES = (Case(SHAPES["tiny"], EVERYONE, rounds=2, steps=1),)


def measure(case: Case) -> dict[str, Any]:
    """Compare contenders over all ranks; every rank calls this.

    Returns:
        Seconds of a step by contender and round, and the losses of the last step.
    """
    contenders = {name: CONTENDERS[name](case.shape) for name in case.names}

    def turn_of(contender: Contender) -> Callable[[], None]:
        def turn() -> None:
            for _ in range(case.steps):
                contender.step()
            contender.settle()

        return turn

    turns = {name: turn_of(contender) for name, contender in contenders.items()}
    seconds = take_turns(turns, case.rounds)
    losses = torch.tensor([contender.loss() for contender in contenders.values()])
    dist.all_reduce(losses)
    del contenders, turns
    gc.collect()  # the next case may need the memory
    return {
        "seconds": {name: [s / case.steps for s in times] for name, times in seconds.items()},
        "losses": dict(zip(case.names, losses.tolist(), strict=True)),
    }


def run(jobs: Mapping[int, Ranks], quick: bool, console: Console) -> Outcome:
    """Measure all cases on all jobs and print a table of each."""
    outcome = Outcome()
    for size, job in jobs.items():
        for case in QUICK_CASES if quick else CASES[size]:
            shape, result = case.shape, job.run(measure, case)[0]
            tokens = f"{shape.batch_size} x {shape.seq_len}"
            row = {"ranks": size, "shape": shape.name, "tokens": tokens, **result}
            outcome.rows.append(row)
            outcome.checks += _checks(row)
            console.print(
                f"\n[bold]zero[/]: a training step of {shape.name} parameters (hidden "
                f"{shape.hidden_size}, {shape.num_hidden_layers} layers), {size} ranks, {tokens} "
                "tokens per rank; x: mtron's ZeRO-1 is so many times as fast. Limits: a rank's "
                "computing alone, and gloo's sum of the gradients alone."
            )
            console.print(_table(row))
    return outcome


def _table(row: dict[str, Any]) -> Table:
    table = Table()
    for header in ("", "ms/step", "x", "loss"):
        table.add_column(header, justify="left" if not header else "right")
    for name, times in row["seconds"].items():
        has_loss = name not in (COMPUTE, MESSAGES)
        table.add_row(
            name,
            f"{1e3 * median(times):.1f}",
            f"{times_as_fast(row['seconds'][OURS], times):.2f}",
            f"{row['losses'][name]:.5f}" if has_loss else "",
        )
    return table


def _checks(row: dict[str, Any]) -> list[Check]:
    where = f"zero, {row['ranks']} ranks, {row['shape']}, {row['tokens']} tokens"
    losses = {n: loss for n, loss in row["losses"].items() if n not in (COMPUTE, MESSAGES)}
    difference = max(abs(loss - losses[OURS]) for loss in losses.values())
    checks = [Check(f"{where}: largest difference of losses", difference, most=1e-4)]
    for ours, theirs in ((OURS, FSDP_KEEPS), (OURS, SHARDED_DDP), (OURS_DDP, TORCH_DDP)):
        if ours in losses and theirs in losses:
            ratio = times_as_fast(row["seconds"][ours], row["seconds"][theirs])
            least = 1.2 if ours == OURS else 1.0
            what = f"{where}: {ours}, times as fast as {theirs.strip(' +')}"
            checks.append(Check(what, ratio, least=least, is_aim=True))
    return checks
