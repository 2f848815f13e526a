"""The curves of a run as one picture."""

from pathlib import Path
from typing import Any

from mtron_train.metrics import read_metrics

CURVES_FILE = "curves.png"


def plot_curves(directory: Path) -> Path:
    """Draw `curves.png` from `metrics.jsonl`: loss, learning rate and gradient norm, speed."""
    from matplotlib.figure import Figure

    records = read_metrics(directory)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    loss, rate, speed = figure.subplots(1, 3)
    _line(loss, records, "loss/train", "training", linewidth=0.9)
    _line(loss, records, "loss/validation", "validation", marker="o", markersize=3)
    _fit_loss_axis(loss, records)
    loss.set_title("loss (nats per token)")
    if loss.lines:
        loss.legend()
    _line(rate, records, "learning_rate", "learning rate", color="tab:green")
    norm = rate.twinx()
    _line(norm, records, "grad_norm", "gradient norm", color="tab:gray", linewidth=0.7)
    norm.set_yscale("log")
    rate.set_title("learning rate (green), gradient norm (gray)")
    _line(speed, records, "tokens_per_second", "tokens/s")
    speed.set_ylim(bottom=0)
    speed.set_title("tokens per second")
    for axes in (loss, rate, speed):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    temporary = directory / f".{CURVES_FILE}"
    figure.savefig(temporary, dpi=120, format="png")
    return temporary.replace(directory / CURVES_FILE)


def _line(axes: Any, records: list[dict[str, Any]], name: str, label: str, **style: Any) -> None:
    points = [(r["step"], r[name]) for r in records if name in r]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)


def _fit_loss_axis(axes: Any, records: list[dict[str, Any]]) -> None:
    """Cut off the fall from the initial loss, which would flatten everything after it."""
    losses = sorted(r["loss/train"] for r in records if "loss/train" in r)
    if len(losses) > 20:
        low, high = losses[0], losses[int(len(losses) * 0.95)]
        axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
