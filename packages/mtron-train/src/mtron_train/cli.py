"""The command `mtron-train`."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mtron_train.config import RunConfig
from mtron_train.load import load_config

INTERRUPTED = 130
"""Exit code of a run that was asked to stop and can be resumed."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[Path, typer.Argument(metavar="RUN.toml", help="Configuration of the run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.field=value]...", help="Replace values of the file."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback()
def _main() -> None:
    """Train language models, from one validated file, exactly resumable."""


@app.command()
def pretrain(file: File, overrides: Overrides = None, debug: Debug = False) -> None:
    """Train a model on a prepared dataset; start again to resume or to hear that it is done.

    Ctrl-C saves and leaves with exit code 130.

    Example: `mtron-train pretrain examples/pretrain.toml optim.lr=1e-3 run.directory=runs/b`
    """
    with _errors(debug):
        config = load_config(file, overrides or ())
        finished = _pretrain(config)
    if not finished:
        raise typer.Exit(INTERRUPTED)


@app.command()
def config(
    file: Annotated[Path | None, typer.Argument(metavar="RUN.toml")] = None,
    overrides: Overrides = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of the file instead.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Check a configuration and print every value it resolves to, defaults included, as JSON.

    Example: `mtron-train config examples/pretrain.toml optim.lr=1e-3`
    """
    with _errors(debug):
        if schema:
            resolved = RunConfig.model_json_schema()
        elif file is None:
            raise ValueError("RUN.toml: name the file to check, or ask for --schema")
        else:
            resolved = load_config(file, overrides or ()).model_dump(mode="json")
        print(json.dumps(resolved, indent=2))


def _pretrain(config: RunConfig) -> bool:
    from rich.console import Console

    from mtron_train.assembly import assemble
    from mtron_train.interrupt import StopRequest
    from mtron_train.lock import exclusive
    from mtron_train.loop import train
    from mtron_train.progress import ProgressLine

    total = config.run.steps
    with exclusive(Path(config.run.directory)), StopRequest() as stop:
        run = assemble(config)
        progress = ProgressLine(Console(), total)
        if run.state.step >= total:
            progress.note(f"{config.run.directory}: done already, step {run.state.step} of {total}")
            return True
        if run.resumed is not None:
            progress.note(f"resuming at step {run.state.step} from {run.resumed.path}")
        with progress:
            outcome = train(run, progress, stop)
        if outcome.validation_loss is not None:
            loss = outcome.validation_loss
            progress.note(f"validation loss {loss:.4f}, perplexity {math.exp(loss):.2f} per token")
        if not outcome.finished:
            progress.note(f"stopped at step {outcome.step} and saved; the same command resumes")
        return outcome.finished


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """Turn what the user can mend into one paragraph on standard error and exit code 1."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        if debug:
            raise
        print(f"error: {_describe(error)}", file=sys.stderr)
        raise typer.Exit(1) from None


def _describe(error: Exception) -> str:
    """Return what went wrong without the error number that an OSError's text begins with."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def main() -> None:
    """Entry point of the command line."""
    app()
