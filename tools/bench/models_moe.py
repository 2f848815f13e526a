"""A mixture-of-experts layer: mtron against each way in which transformers can compute it.

A section of `models.py`. Router and experts, forward and backward, with the same weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from in_turns import take_turns
from machine import Peak
from outcome import Check, Outcome
from ranks import times_as_fast
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from mtron_models import Context, MoE, RouterSpec

OURS = "mtron"
FORWARD, BOTH = "forward", "forward + backward"
ROUNDS = 9
TIMES_AS_FAST, SHARE_OF_PEAK = 1.5, 0.8
"""One of them is required of forward and backward together."""
MOST_COPIED_BYTES = 5e8
"""`batched_mm` copies the weights of an expert for every row; beyond this it is left out."""


@dataclass(frozen=True)
class MoeShape:
    """A layer and what goes through it."""

    name: str
    hidden: int
    width: int
    experts: int
    chosen: int
    tokens: int

    @property
    def spec(self) -> RouterSpec:
        """How tokens choose: as in Mixtral, and in Qwen3-MoE with norm_topk_prob."""
        return RouterSpec(self.experts, self.chosen, normalize=True)

    @property
    def forward_flops(self) -> int:
        """Operations of a forward pass."""
        per_token = self.experts + 3 * self.chosen * self.width  # of the router and the experts
        return 2 * self.hidden * per_token * self.tokens

    @property
    def copied_bytes(self) -> int:
        """What `batched_mm` copies of the weights."""
        return 3 * self.hidden * self.width * 4 * self.tokens * self.chosen

    def __str__(self) -> str:
        return (
            f"{self.chosen} of {self.experts} experts of width {self.width}, hidden size "
            f"{self.hidden}, {self.tokens} tokens"
        )


SHAPES = (
    MoeShape("as Mixtral", hidden=512, width=1792, experts=8, chosen=2, tokens=2048),
    MoeShape("as Qwen3-MoE", hidden=512, width=192, experts=64, chosen=8, tokens=4096),
    MoeShape("few tokens each", hidden=512, width=256, experts=32, chosen=4, tokens=512),
)
QUICK_SHAPES = (MoeShape("tiny", hidden=32, width=16, experts=4, chosen=2, tokens=64),)


def contenders(shape: MoeShape) -> dict[str, nn.Module]:
    """Return the layers by name, all with the same weights."""
    torch.manual_seed(0)
    ours = MoE(shape.hidden, shape.width, shape.spec, site="layer")
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.02)
    made: dict[str, nn.Module] = {OURS: ours}
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        if implementation == "batched_mm" and shape.copied_bytes > MOST_COPIED_BYTES:
            continue
        config = MixtralConfig(
            hidden_size=shape.hidden,
            intermediate_size=shape.width,
            num_local_experts=shape.experts,
            num_experts_per_tok=shape.chosen,
        )
        config._experts_implementation = implementation
        theirs: Any = MixtralSparseMoeBlock(config)
        experts = ours.experts
        with torch.no_grad():
            theirs.gate.weight.copy_(ours.router.weight)
            theirs.experts.gate_up_proj.copy_(torch.cat((experts.gate_proj, experts.up_proj), 1))
            theirs.experts.down_proj.copy_(experts.down_proj)
        made[f"transformers, {implementation}"] = theirs
    return made


def turns(shape: MoeShape) -> dict[str, Callable[[], None]]:
    """Return for every contender its two turns; they check that all compute the same."""
    x = torch.randn(1, shape.tokens, shape.hidden, requires_grad=True)
    direction = torch.randn_like(x)
    expected: list[Tensor] = []
    made: dict[str, Callable[[], None]] = {}

    def compute(name: str, layer: nn.Module) -> Tensor:
        return layer(x, Context()) if name == OURS else layer(x)

    def forward(name: str, layer: nn.Module) -> None:
        with torch.no_grad():
            compute(name, layer)

    def both(name: str, layer: nn.Module) -> None:
        x.grad = None
        layer.zero_grad()
        y = compute(name, layer)
        y.backward(direction)
        assert x.grad is not None
        if name not in checked:
            found = [y.detach(), x.grad.clone()]
            for ours, theirs in zip(found, expected or found, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
            expected[:] = found
            checked.add(name)

    checked: set[str] = set()
    for name, layer in contenders(shape).items():
        made[f"{name}: {FORWARD}"] = lambda name=name, layer=layer: forward(name, layer)
        made[f"{name}: {BOTH}"] = lambda name=name, layer=layer: both(name, layer)
    return made


def measure(shape: MoeShape, rounds: int, peak: Peak) -> list[dict[str, Any]]:
    """Let the contenders take turns; return a row for each and each of its passes."""
    seconds = take_turns(turns(shape), rounds)
    rows: list[dict[str, Any]] = []
    for turn, times in seconds.items():
        name, _, which = turn.partition(": ")
        flops = shape.forward_flops * (1 if which == FORWARD else 3)
        rows.append(
            {
                "shape": shape.name,
                "contender": name,
                "pass": which,
                "tokens_per_second": shape.tokens / median(times),
                "share_of_best_peak": flops / median(times) / peak.best,
                "mtron_times_as_fast": times_as_fast(seconds[f"{OURS}: {which}"], times),
                "seconds": times,
            }
        )
    return rows


def run(quick: bool, peak: Peak, console: Console) -> Outcome:
    """Measure all shapes and print their tables."""
    outcome = Outcome()
    for shape in QUICK_SHAPES if quick else SHAPES:
        rows = measure(shape, 2 if quick else ROUNDS, peak)
        console.print(
            f"\n[bold]experts, {shape.name}[/]: {shape}; x: mtron is so many times as fast"
        )
        console.print(_table(rows))
        outcome.rows += rows
        if not quick:
            outcome.checks.append(_check(shape, rows))
    return outcome


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    for header in ("", FORWARD, "% of best", "x", BOTH, "% of best", "x"):
        table.add_column(header, justify="left" if not header else "right")
    by_name: dict[str, list[str]] = {}
    for row in rows:
        by_name.setdefault(row["contender"], []).extend(
            (
                f"{row['tokens_per_second']:,.0f}",
                f"{100 * row['share_of_best_peak']:.0f}",
                f"{row['mtron_times_as_fast']:.2f}",
            )
        )
    for name, cells in by_name.items():
        table.add_row(name, *cells)
    return table


def _check(shape: MoeShape, rows: list[dict[str, Any]]) -> Check:
    """Hold forward and backward against the nearer one of the two requirements."""
    both = [row for row in rows if row["pass"] == BOTH]
    (share,) = (row["share_of_best_peak"] for row in both if row["contender"] == OURS)
    ratio = min(row["mtron_times_as_fast"] for row in both if row["contender"] != OURS)
    what = f"experts, {shape.name}"
    if share / SHARE_OF_PEAK > ratio / TIMES_AS_FAST:
        return Check(f"{what}: share of the best matrix products", share, least=SHARE_OF_PEAK)
    return Check(f"{what}: times as fast as the best of transformers", ratio, least=TIMES_AS_FAST)
