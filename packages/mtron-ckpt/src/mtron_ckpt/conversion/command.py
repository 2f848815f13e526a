"""The command `mtron-ckpt convert`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import typer

from mtron_ckpt.conversion.api import convert
from mtron_ckpt.conversion.detect import FORMAT_NAMES
from mtron_ckpt.conversion.progress import Progress
from mtron_ckpt.conversion.report import ConvertReport

EXAMPLE = "Example: mtron-ckpt convert runs/base exported --to hf"


def convert_command(
    src: Annotated[
        str,
        typer.Argument(metavar="SRC", help="mtron checkpoint or Hugging Face model directory."),
    ],
    dst: Annotated[str, typer.Argument(metavar="DST", help="Directory to write.")],
    to: Annotated[Literal["hf", "mtron"], typer.Option(help="Format of DST.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace DST if it holds a checkpoint.")
    ] = False,
) -> None:
    """Convert a checkpoint between mtron and Hugging Face; weights stay bitwise the same.

    The format of SRC is recognized by its content.
    """
    with _progress_bar() as progress:
        report = convert(src, dst, to=to, overwrite=overwrite, progress=progress)
    for line in _describe(report):
        typer.echo(line)


def _describe(report: ConvertReport) -> Iterator[str]:
    yield (
        f"{report.destination}: {FORMAT_NAMES[report.target_format]} checkpoint, "
        f"{report.model_type}, {report.num_tensors} tensors, {report.num_bytes / 1e6:.1f} MB"
    )
    yield from (f"  {note}" for note in report.notes)


@contextmanager
def _progress_bar() -> Iterator[Progress | None]:
    """A bar with the time left on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("converting", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
