"""The command `mtron-train`."""

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mtron_parallel import die_with_parent, launch, report_failures
from mtron_train.config import RunConfig
from mtron_train.load import load_config
from mtron_train.lock import exclusive

INTERRUPTED = 130
"""Exit code of a run that was asked to stop and can be resumed."""

EXPECTED = (ValueError, OSError, FloatingPointError)
"""Exceptions whose message says what to do; lost and late processes are OSErrors."""

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
NumProcesses = Annotated[
    int | None, typer.Option("--nproc", min=1, metavar="N", help="Processes on this machine.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback()
def _main() -> None:
    """Train language models, from one validated file, exactly resumable."""


@app.command()
def pretrain(
    file: File, overrides: Overrides = None, nproc: NumProcesses = None, debug: Debug = False
) -> None:
    """Train a model on a prepared dataset; start again to resume or to hear that it is done.

    Ctrl-C saves and leaves with exit code 130. With `--nproc` it starts that many processes here;
    under torchrun, or wherever RANK and WORLD_SIZE are set, it is one of those there are.

    Example: `mtron-train pretrain examples/pretrain.toml optim.kind=adamw parallel.tp=2 --nproc 2`
    """
    with _errors(debug):
        world_size = _world_size(nproc)
        if nproc is not None and nproc > 1:
            load_config(file, overrides or (), world_size)  # an error is said once, at once
            raise typer.Exit(_launch(nproc))
        die_with_parent(os.environ)
        with report_failures(os.environ, () if debug else EXPECTED, _describe):
            finished = _pretrain(load_config(file, overrides or (), world_size))
    if not finished:
        raise typer.Exit(INTERRUPTED)


@app.command()
def config(
    file: Annotated[Path | None, typer.Argument(metavar="RUN.toml")] = None,
    overrides: Overrides = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of the file instead.")
    ] = False,
    nproc: NumProcesses = None,
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
            world_size = _world_size(nproc)
            resolved = load_config(file, overrides or (), world_size).model_dump(mode="json")
        print(json.dumps(resolved, indent=2))


def _world_size(nproc: int | None) -> int:
    """Return how many processes the run has: those to start, or those that were started."""
    launched = os.environ.get("WORLD_SIZE")
    if launched is None:
        return nproc or 1
    if nproc is not None:
        raise ValueError(
            f"--nproc: WORLD_SIZE = {launched} says that processes were started already, got "
            f"{nproc}; leave one of the two out"
        )
    if not launched.isdecimal() or int(launched) < 1:
        raise ValueError(f"WORLD_SIZE: must be a number of processes, got {launched!r}")
    return int(launched)


def _launch(nproc: int) -> int:
    """Run this very command in `nproc` processes; return the exit code."""
    arguments = list(sys.argv[1:])
    for index, argument in enumerate(arguments):
        if argument == "--nproc":
            del arguments[index : index + 2]
            break
        if argument.startswith("--nproc="):
            del arguments[index]
            break
    return launch([sys.executable, "-m", "mtron_train", *arguments], nproc)


def _pretrain(config: RunConfig) -> bool:
    from rich.console import Console

    from mtron_parallel import Job
    from mtron_train.assembly import assemble
    from mtron_train.interrupt import StopRequest
    from mtron_train.loop import train
    from mtron_train.progress import ProgressLine

    timeout_seconds = config.parallel.timeout_seconds
    with ExitStack() as stack:
        if os.environ.get("RANK", "0") == "0":
            stack.enter_context(exclusive(Path(config.run.directory)))
        stop = stack.enter_context(StopRequest())
        job = stack.enter_context(Job.start(os.environ, config.run.device, timeout_seconds))
        progress = ProgressLine(Console(quiet=job.rank != 0), config.run.steps)
        run = assemble(config, job)
        total = config.run.steps
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
    except EXPECTED as error:
        if debug:
            raise
        print(f"error: {_describe(error)}", file=sys.stderr)
        raise typer.Exit(1) from None


def _describe(error: BaseException) -> str:
    """Return what went wrong without the error number that an OSError's text begins with."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def main() -> None:
    """Entry point of the command line."""
    app()
