"""The command `mtron-data`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="JSONL (.jsonl, .ndjson, .json) or plain text files, folders, quoted patterns.",
    ),
]
Key = Annotated[str, typer.Option(help="Key of the text in a line of JSONL.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Dataset = Annotated[Path, typer.Argument(metavar="DATASET", help="Directory or prefix.")]


@app.callback()
def _main() -> None:
    """Turn raw text into datasets for training."""


@app.command()
def train_tokenizer(
    inputs: Inputs,
    output: Annotated[Path, typer.Option(help="Directory to make.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens wanted.")],
    key: Key = "text",
    special_token: Annotated[
        list[str] | None, typer.Option(help="A further special token; may be repeated.")
    ] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Train a byte-level BPE tokenizer, loadable by `transformers` too.

    Example: `mtron-data train-tokenizer train.jsonl --vocab-size 4096 --output tokenizer`
    """
    with _errors(debug):
        from mtron_data.tokenizer.training import train_tokenizer

        trained = train_tokenizer(
            inputs,
            vocab_size,
            output,
            key=key,
            special_tokens=special_token or (),
            overwrite=overwrite,
        )
        size = trained.tokenizer.vocab_size
        asked = "" if size == vocab_size else f" (the text gives no more; asked for {vocab_size:,})"
        print(f"{output}: {_state(trained.up_to_date)}, {size:,} tokens{asked}")


@app.command()
def prepare(
    inputs: Inputs,
    tokenizer: Annotated[Path, typer.Option(help="Directory with tokenizer.json.")],
    output: Annotated[Path, typer.Option(help="Directory to make.")],
    workers: Annotated[
        int | None, typer.Option(help="Processes.", show_default="the cores available")
    ] = None,
    key: Key = "text",
    eos: Annotated[
        bool, typer.Option("--eos/--no-eos", help="End each document with the eos token.")
    ] = True,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Tokenize text into a dataset: Megatron's .bin/.idx, the tokenizer and a manifest.

    The result does not depend on the number of workers. Run again on the same inputs, it says that
    it is up to date.

    Examples: `mtron-data prepare train.jsonl --tokenizer tokenizer --output data/train`,
    `mtron-data prepare 'docs/**/*.md' --tokenizer tokenizer --output data/docs --workers 8`
    """
    with _errors(debug):
        from mtron_data.preparation.run import prepare
        from mtron_data.progress import available_cores, progress_bar

        with progress_bar("tokenizing") as progress:
            prepared = prepare(
                inputs,
                tokenizer,
                output,
                available_cores() if workers is None else workers,
                key=key,
                append_eos=eos,
                overwrite=overwrite,
                progress=progress,
            )
        manifest = prepared.manifest
        print(
            f"{output}: {_state(prepared.up_to_date)}, {manifest.num_documents:,} documents, "
            f"{manifest.num_tokens:,} tokens ({manifest.dtype}), {manifest.text_bytes:,} bytes of "
            f"text, {manifest.text_bytes / manifest.num_tokens:.2f} bytes per token"
        )


@app.command()
def inspect(
    dataset: Dataset,
    document: Annotated[int, typer.Option(min=0, help="Which document to show.")] = 0,
    tokens: Annotated[int, typer.Option(min=1, help="How many of its tokens to show.")] = 100,
    debug: Debug = False,
) -> None:
    """Show counts and the beginning of a document, decoded.

    Example: `mtron-data inspect data/train --document 3 --tokens 200`
    """
    with _errors(debug):
        from mtron_data.inspection import describe

        describe(dataset, document, tokens)


@app.command()
def verify(
    dataset: Dataset,
    vocab_size: Annotated[
        int | None, typer.Option(min=1, help="Check ids against it, if there is no manifest.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Check every invariant of a dataset; exit code 1 and one line each for what is violated.

    Example: `mtron-data verify data/train`
    """
    with _errors(debug):
        from mtron_data.indexed.verify import verify

        report = verify(dataset, vocab_size)
    for violation in report.violations:
        print(f"error: {violation}", file=sys.stderr)
    if not report.ok:
        raise typer.Exit(1)
    print(f"{dataset}: {report.num_documents:,} documents, {report.num_tokens:,} tokens, all well")


def _state(up_to_date: bool) -> str:
    return "up to date" if up_to_date else "written"


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """Turn what the user can mend into one paragraph on standard error and exit code 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        if debug:
            raise
        message = _message(error)
        print(f"error: {message}", file=sys.stderr)
        raise typer.Exit(1) from None


def _message(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path and its permissions"
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror
    return " ".join(str(error).split())


def main() -> None:
    """Entry point of the command line."""
    app()
