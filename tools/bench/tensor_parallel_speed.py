"""Forward and backward with cut weights: mtron's hooks beside torch's `parallelize_module`.

Both cut the same module, with the same weights, over the same ranks. torch gets two plans: one
that names linear layers only, as its tutorial does, and one that also lets the input enter once
for a block's layers, as mtron does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as functional
from outcome import Check, Outcome
from ranks import Ranks, take_turns, times_as_fast
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from mtron_models import LlamaConfig, Shard, build, initialize
from mtron_parallel import Mesh, ParallelConfig, parallelize

ROWS, SEQ_LEN = 4, 128
FEED_FORWARD, DECODER = "4 feed-forward layers", "1 decoder layer"
OURS, BY_LAYER, BY_BLOCK = "mtron", "by layer", "by block"
PRODUCTS, MESSAGES = "products", "all-reduces"
TURNS = {128: (11, 4), 256: (15, 2), 512: (7, 1), 1024: (3, 1)}
QUICK_TURNS = {128: (2, 1)}
"""By hidden size: counted rounds, and steps in a turn."""
MOST_HIDDEN = {4: 512}
"""By number of ranks, where more would take too long."""


class FeedForward(nn.Module):
    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class FeedForwardStack(nn.Module):
    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FeedForward(hidden, intermediate) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@dataclass(frozen=True)
class Case:
    """A module to cut.

    Attributes:
        kind: `FEED_FORWARD` or `DECODER`.
        hidden: width of its input.
        rounds: how often each contender has its turn.
        steps: forward and backward passes in a turn.
    """

    kind: str
    hidden: int
    rounds: int
    steps: int

    def build(self) -> tuple[nn.Module, Mapping[str, Any], Mapping[str, ParallelStyle]]:
        """Return the whole module, always with the same weights, mtron's layout table for it and
        torch's styles of what the table cuts.
        """
        intermediate = -(-self.hidden * 8 // 3 // 64) * 64
        if self.kind == FEED_FORWARD:
            torch.manual_seed(0)
            table = {"*.gate_proj.*": Shard(0), "*.up_proj.*": Shard(0), "*.down_proj.*": Shard(1)}
            return FeedForwardStack(self.hidden, intermediate), table, _styles("layers.*.", MLP)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=self.hidden,
            intermediate_size=intermediate,
            num_hidden_layers=1,
            num_attention_heads=8,
            num_key_value_heads=8,
            tie_word_embeddings=False,
        )
        model: Any = build(config)
        model.embed = model.norm = model.head = None  # what is left takes hidden states
        initialize(model.to_empty(device="cpu"), seed=0)
        styles = _styles("layers.*.mlp.", MLP) | _styles("layers.*.self_attn.", ATTENTION)
        return model, config.layout(), styles


MLP = (("gate_proj", "up_proj"), "down_proj")
ATTENTION = (("q_proj", "k_proj", "v_proj"), "o_proj")


def _styles(prefix: str, names: tuple[tuple[str, ...], str]) -> dict[str, ParallelStyle]:
    columns, rows = names
    styles: dict[str, ParallelStyle] = {prefix + name: ColwiseParallel() for name in columns}
    return styles | {prefix + rows: RowwiseParallel()}


def measure(case: Case) -> dict[str, Any]:
    """Compare both ways to cut a module over all ranks; every rank calls this.

    Returns:
        Seconds of a step by contender and round, the losses, and the all-reduces of a step.
    """
    mesh = Mesh.over(ParallelConfig(tp=dist.get_world_size()), "cpu")
    hidden = torch.randn(ROWS, SEQ_LEN, case.hidden, generator=torch.Generator().manual_seed(1))
    modules = _cut(case, mesh)
    losses: dict[str, float] = {}

    def stepping(name: str) -> Callable[[], None]:
        module = modules[name]

        def step() -> None:
            module.zero_grad()
            loss = module(hidden).square().mean()
            loss.backward()
            losses[name] = loss.item()

        return step

    steps: dict[str, Callable[[], object]] = {name: stepping(name) for name in modules}
    before = mesh.traffic.calls.get("tp", 0)
    steps[OURS]()
    calls = mesh.traffic.calls["tp"] - before
    steps[PRODUCTS] = _products(modules[OURS])
    message = torch.zeros_like(hidden)
    steps[MESSAGES] = lambda: [dist.all_reduce(message) for _ in range(calls)]
    turns = {name: _repeated(step, case.steps) for name, step in steps.items()}
    seconds = take_turns(turns, case.rounds)
    per_step = {name: [s / case.steps for s in times] for name, times in seconds.items()}
    return {"seconds": per_step, "losses": losses, "all_reduces": calls}


def _cut(case: Case, mesh: Mesh) -> dict[str, nn.Module]:
    module, table, styles = case.build()
    modules = {OURS: parallelize(module, mesh, table).module}
    devices = init_device_mesh("cpu", (dist.get_world_size(),))
    modules[BY_LAYER] = parallelize_module(case.build()[0], devices, dict(styles))
    whole, _, styles = case.build()
    blocks = {name.rpartition(".")[0] for name in styles}
    others = 2 if case.kind == DECODER else 0  # what attention takes besides its input
    enter = {
        name: PrepareModuleInput(
            input_layouts=(Replicate(), *(None,) * (others if "attn" in name else 0)),
            desired_input_layouts=(Replicate(), *(None,) * (others if "attn" in name else 0)),
        )
        for name in blocks
    }
    modules[BY_BLOCK] = parallelize_module(whole, devices, {**styles, **enter})
    return modules


def _products(module: nn.Module) -> Callable[[], None]:
    """Return the matrix products of a step of this rank's part, without anything else."""
    tokens, jobs = ROWS * SEQ_LEN, []
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            weight = linear.weight.detach()
            x, y = (torch.zeros(tokens, size) for size in reversed(weight.shape))
            jobs.append((weight, x, y, torch.empty_like(weight), x.clone(), y.clone()))

    def step() -> None:
        for weight, x, gradient, weight_gradient, input_gradient, y in jobs:
            torch.mm(x, weight.t(), out=y)
            torch.mm(gradient, weight, out=input_gradient)
            torch.mm(gradient.t(), x, out=weight_gradient)

    return step


def _repeated(step: Callable[[], object], times: int) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(times):
            step()

    return turn


def run(jobs: Mapping[int, Ranks], quick: bool, console: Console) -> Outcome:
    """Measure all cases on all jobs and print a table."""
    outcome = Outcome()
    for size, job in jobs.items():
        for kind in (FEED_FORWARD, DECODER):
            for hidden, turns in (QUICK_TURNS if quick else TURNS).items():
                if hidden <= MOST_HIDDEN.get(size, hidden):
                    result = job.run(measure, Case(kind, hidden, *turns))[0]
                    outcome.rows.append({"ranks": size, "module": kind, "hidden": hidden, **result})
    console.print(
        f"\n[bold]tp[/]: forward and backward of {ROWS} x {SEQ_LEN} tokens, ms per step. mtron's "
        "hooks, and torch's `parallelize_module` with styles by linear layer or also by block; x: "
        "mtron is so many times as fast. Limits: the local matrix products and gloo's all-reduces, "
        "each alone."
    )
    console.print(_table(outcome.rows))
    outcome.checks = _checks(outcome.rows)
    return outcome


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    headers = ("module", "ranks", "hidden", OURS, BY_LAYER, "x", BY_BLOCK, "x", PRODUCTS, MESSAGES)
    for header in headers:
        table.add_column(header, justify="left" if header == "module" else "right")
    for row in rows:
        seconds = row["seconds"]
        cells = {name: f"{1e3 * median(times):.1f}" for name, times in seconds.items()}
        ratios = {name: f"{times_as_fast(seconds[OURS], seconds[name]):.2f}" for name in seconds}
        table.add_row(
            row["module"],
            str(row["ranks"]),
            str(row["hidden"]),
            cells[OURS],
            *(cells[BY_LAYER], ratios[BY_LAYER], cells[BY_BLOCK], ratios[BY_BLOCK]),
            *(cells[PRODUCTS], cells[MESSAGES]),
        )
    return table


def _checks(rows: list[dict[str, Any]]) -> list[Check]:
    differences = [
        abs(loss / row["losses"][OURS] - 1) for row in rows for loss in row["losses"].values()
    ]
    checks = [Check("tp: largest relative difference of losses", max(differences), most=1e-5)]
    for plan in (BY_LAYER, BY_BLOCK):
        ratios = {
            (row["module"], row["hidden"]): times_as_fast(
                row["seconds"][OURS], row["seconds"][plan]
            )
            for row in rows
            if row["ranks"] == 2
        }
        what = f"tp, 2 ranks: times as fast as torch {plan}"
        if (FEED_FORWARD, 256) in ratios:
            ratio = ratios[FEED_FORWARD, 256]
            where = f"{what}, {FEED_FORWARD}, hidden 256"
            checks.append(Check(where, ratio, least=1.5, is_aim=plan == BY_BLOCK))
        if ratios:
            (module, hidden), ratio = min(ratios.items(), key=lambda item: item[1])
            checks.append(
                Check(f"{what}, least of all ({module}, hidden {hidden})", ratio, least=1)
            )
    return checks
