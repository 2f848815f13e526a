"""The command `mtron-ckpt`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mtron_ckpt.conversion.adapters.api import EXAMPLE as ADAPTER_EXAMPLE
from mtron_ckpt.conversion.adapters.api import convert_adapter_command
from mtron_ckpt.conversion.command import EXAMPLE, convert_command

DEBUG = "--debug"

app = typer.Typer(
    help="Look into, verify and convert checkpoints. No torch and no GPU needed.",
    epilog=f"Example: mtron-ckpt inspect runs/base/checkpoints. "
    f"With {DEBUG} anywhere, an error shows its traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("convert", epilog=EXAMPLE)(convert_command)
app.command("convert-adapter", epilog=ADAPTER_EXAMPLE)(convert_adapter_command)

_Path = Annotated[
    str, typer.Argument(metavar="PATH", help="A step's directory, or the directory it is in.")
]


@app.command(epilog="Example: mtron-ckpt inspect runs/base/checkpoints/step-00000400")
def inspect(path: _Path) -> None:
    """Show the arrays, sizes, step and configuration of a checkpoint.

    Of a directory with several steps, the newest is shown.
    """
    from rich.console import Console

    from mtron_ckpt.inspection import describe_checkpoint
    from mtron_ckpt.reading import open as open_checkpoint
    from mtron_ckpt.steps import committed_steps

    checkpoint = open_checkpoint(path)
    steps = list(committed_steps(Path(path)))
    Console(soft_wrap=True, highlight=False).print(describe_checkpoint(checkpoint, steps))


@app.command(epilog="Example: mtron-ckpt verify runs/base/checkpoints")
def verify(path: _Path) -> None:
    """Read every byte of a checkpoint and compare it with its checksums.

    Of a directory with several steps, all are verified. Exits with 1 if anything is damaged.
    """
    from mtron_ckpt.inspection import format_bytes
    from mtron_ckpt.verifying import verify as verify_checkpoint

    report = verify_checkpoint(path)
    if not report.ok:
        typer.echo("\n".join(map(str, report.damages)))
        raise ValueError(
            f"{path}: {len(report.damages)} damaged places; use another step or a backup copy"
        )
    steps = "1 step" if len(report.steps) == 1 else f"{len(report.steps)} steps"
    typer.echo(f"{path}: {steps}, {format_bytes(report.num_bytes)}: every byte is as it was saved")


def main(arguments: list[str] | None = None) -> None:
    """Run the command; an expected error becomes one paragraph on standard error.

    Args:
        arguments: without the program's name; None takes them from the command line.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        app([argument for argument in given if argument != DEBUG], prog_name="mtron-ckpt")
    except (ValueError, OSError) as error:  # what the user, a file or the system did
        if DEBUG in given:
            raise
        typer.echo(f"error: {_message(error)}", err=True)
        sys.exit(1)


def _message(error: ValueError | OSError) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        text = f"{where}{error.strerror}"
    return " ".join(text.split())
