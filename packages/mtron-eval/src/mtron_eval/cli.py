"""The command `mtron-eval`."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from mtron_eval.config import Dtype
from mtron_eval.results import RESULTS_FILE, Results
from mtron_eval.scoring import Progress

app = typer.Typer(
    name="mtron-eval",
    help="Evaluate checkpoints offline, with every number reproducible from the report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Data = Annotated[
    list[str],
    typer.Option(
        metavar="FILE",
        help='JSON lines {"text": ...} (.jsonl), a text file, a folder; may be repeated.',
    ),
]
Output = Annotated[
    Path | None, typer.Option(metavar="DIR", help=f"Directory that gets {RESULTS_FILE}.")
]
Context = Annotated[
    int | None,
    typer.Option(help="Most tokens before the predicted one.  [default: the model's length]"),
]
Stride = Annotated[
    int | None,
    typer.Option(help="Tokens scored by each further window.  [default: half the context]"),
]
Threads = Annotated[int | None, typer.Option(help="Processor threads; torch decides if not given.")]


def main() -> None:
    """Entry point of the command."""
    app()


@app.command(
    epilog="Example: mtron-eval run runs/base --tasks perplexity --data held-out.jsonl "
    "--output results/base"
)
def run(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="A root of checkpoints or one step directory.")
    ],
    tasks: Annotated[str, typer.Option(help="Comma-separated names; see `mtron-eval list`.")],
    data: Data,
    output: Output = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help=f"Replace an existing {RESULTS_FILE}.")
    ] = False,
    context: Context = None,
    stride: Stride = None,
    batch_size: Annotated[int, typer.Option(help="Windows scored together.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Type to compute in.")] = "auto",
    threads: Threads = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Score a checkpoint on local data; print a table and write JSON."""
    with _one_paragraph_errors(debug):
        if output is not None:
            _check_output(output, overwrite)
        from mtron_eval.runner import evaluate  # brings numpy; --help must stay quick

        names = [name.strip() for name in tasks.split(",") if name.strip()]
        with _progress_bar() as progress:
            results = evaluate(
                checkpoint,
                names,
                data,
                context=context,
                stride=stride,
                batch_size=batch_size,
                device=device,
                dtype=dtype,
                threads=threads,
                progress=progress,
            )
        try:
            written = None if output is None else results.save(output)
        finally:  # a full disk must not cost the numbers
            _show(results)
        if written is not None:
            typer.echo(f"written: {written}")


@app.command("list", epilog="Example: mtron-eval list")
def list_tasks() -> None:
    """List the tasks."""
    from mtron_eval.registry import find_task, task_names

    for name in task_names():
        task = find_task(name)
        typer.echo(f"{name}  (version {task.version})  {task.description}")


def _show(results: Results) -> None:
    from rich.console import Console

    from mtron_eval.report import print_results

    print_results(results, Console())


def _check_output(output: Path, overwrite: bool) -> None:
    """Finds out before the work whether its result can be written."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output: {output} is not a directory; name one")
    if (output / RESULTS_FILE).exists() and not overwrite:
        raise ValueError(
            f"--output: {output / RESULTS_FILE} already exists; choose another directory or "
            "add --overwrite"
        )
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise ValueError(f"--output: {output} cannot be written; choose another directory")


@contextmanager
def _progress_bar() -> Iterator[Progress | None]:
    """A bar on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scoring", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _one_paragraph_errors(debug: bool) -> Iterator[None]:
    """Turns what the user can mend into one paragraph on standard error and exit status 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"error: {_paragraph(error)}", err=True)
        raise typer.Exit(1) from error


def _paragraph(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(_describe(problem) for problem in error.errors())
    return " ".join(str(error).split())


def _describe(problem: object) -> str:
    assert isinstance(problem, dict)
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    message = message[0].lower() + message[1:]
    return f"{'.'.join(map(str, problem['loc']))}: {message}, got {problem['input']!r}"
