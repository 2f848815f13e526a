"""The results as a table for people."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mtron_eval.results import Metric, Results, TaskResult

_WIDTH_OF_PLAIN_TEXT = 160


def print_results(results: Results, console: Console) -> None:
    """Prints one table per task: a drawn one on a terminal, else plain text.

    Args:
        results: what to show.
        console: where.
    """
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH_OF_PLAIN_TEXT)
    for task in results.tasks.values():
        console.print(_table(task, drawn=console.is_terminal))
        console.print(escape(_summary(task)), soft_wrap=True, highlight=False)


def _table(task: TaskResult, drawn: bool) -> Table:
    table = Table(
        title=f"{task.name} (version {task.version})",
        title_justify="left",
        box=box.ROUNDED if drawn else None,
        pad_edge=drawn,
    )
    with_groups = bool(task.groups)
    if with_groups:
        table.add_column("domain")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("std. error", justify="right")
    table.add_column("unit")
    for group, name, metric in _rows(task):
        error = "-" if metric.standard_error is None else f"{metric.standard_error:.4f}"
        cells = [name, f"{metric.value:.4f}", error, metric.unit]
        table.add_row(*([escape(group)] if with_groups else []), *cells)
    return table


def _rows(task: TaskResult) -> Iterator[tuple[str, str, Metric]]:
    for name, metric in task.metrics.items():
        yield "all", name, metric
    for group, metrics in task.groups.items():
        for name, metric in metrics.items():
            yield group, name, metric


def _summary(task: TaskResult) -> str:
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in task.counts.items())
    settings = ", ".join(f"{name} {value}" for name, value in task.settings.items())
    return f"{counts}; {settings}"
