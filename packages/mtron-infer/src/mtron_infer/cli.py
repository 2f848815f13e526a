"""The command `mtron-infer`."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import ValidationError

from mtron_infer.config import EngineConfig, SamplingParams, ServerConfig

if TYPE_CHECKING:
    from mtron_infer.engine import Engine
    from mtron_infer.loading import LoadedModel

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Checkpoint = Annotated[
    Path, typer.Argument(metavar="CKPT", help="Checkpoints of a run, or one step of them.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[
    Literal["auto", "float64", "float32", "bfloat16", "float16"],
    typer.Option(help="Type to compute in."),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Processor threads; torch decides if not given.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback()
def _main() -> None:
    """Generate text with what mtron trains, on the command line or behind OpenAI's interface."""


@app.command()
def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="File with the text to continue; - is standard input.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample among so many tokens; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among tokens that reach this sum.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes the result repeatable.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the continuation; repeatable.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Continue a text: the continuation, and nothing else, goes to standard output.

    Example: `mtron-infer generate runs/a --prompt "def main(" --max-tokens 64 --temperature 0.8`

    Example: `head -c 500 some.py | mtron-infer generate runs/a --prompt-file - --temperature 0`
    """
    with _errors(debug):
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=tuple(stop or ()),
        )
        text = _read_prompt(prompt, prompt_file)
        loaded = _load(checkpoint, device, dtype, threads)
        _print_continuation(_engine(loaded, EngineConfig()), text, params)


@app.command()
def serve(
    checkpoint: Checkpoint,
    host: Annotated[str, typer.Option(help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind to; 0 takes a free one.")] = 8000,
    model_name: Annotated[
        str | None, typer.Option(help="Name of the model; that of the directory if not given.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Key that clients must send.", envvar="MTRON_API_KEY")
    ] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let other machines in without a key.")
    ] = False,
    max_batch_size: Annotated[int, typer.Option(help="Sequences generated together.")] = 16,
    max_batch_tokens: Annotated[int, typer.Option(help="Tokens in one pass.")] = 2048,
    max_queue: Annotated[int, typer.Option(help="Sequences that may wait.")] = 256,
    max_len: Annotated[
        int | None, typer.Option(help="Longest sequence; the model's limit if not given.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Answer OpenAI's completion requests until SIGTERM or Ctrl-C.

    Example: `mtron-infer serve runs/a --port 8000`, and then
    `openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="-")`
    """
    with _errors(debug):
        limits = EngineConfig(
            max_batch_size=max_batch_size,
            max_batch_tokens=max_batch_tokens,
            max_queue=max_queue,
            max_len=max_len,
        )
        name = model_name or _name_of(checkpoint)
        config = ServerConfig(model_name=name, api_key=api_key)
        from mtron_infer.server.address import bind, check_address, url_of

        check_address(host, api_key, allow_remote)
        with bind(host, port) as listening:
            engine = _engine(_load(checkpoint, device, dtype, threads), limits)
            from mtron_infer.server.run import run

            _note(f"serving {name} at {url_of(listening)}; Ctrl-C stops")
            run(engine, listening, config)
            _note("stopped")


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    if (prompt is None) == (file is None):
        raise ValueError("--prompt: give either --prompt TEXT or --prompt-file FILE")
    if prompt is not None:
        return prompt
    assert file is not None
    data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: is not UTF-8 text, got byte 0x{data[error.start]:02x} at {error.start}; "
            "convert it first"
        ) from None


def _load(checkpoint: Path, device: str, dtype: Dtype, threads: int | None) -> "LoadedModel":
    import torch

    from mtron_infer.loading import load

    if threads is not None:
        torch.set_num_threads(threads)
    begin = time.monotonic()
    loaded = load(checkpoint, device=device, dtype=dtype)
    parameters = list(loaded.model.parameters())
    millions = sum(parameter.numel() for parameter in parameters) / 1e6
    _note(
        f"loaded {loaded.path} in {time.monotonic() - begin:.1f} s: step {loaded.step}, "
        f"{millions:.1f}M parameters, {str(parameters[0].dtype).removeprefix('torch.')} "
        f"on {parameters[0].device}"
    )
    return loaded


def _engine(loaded: "LoadedModel", config: EngineConfig) -> "Engine":
    from mtron_infer.engine import Engine

    return Engine(loaded.model, loaded.tokenizer, config)


def _print_continuation(engine: "Engine", prompt: str, params: SamplingParams) -> None:
    """Write text to standard output as it comes, in UTF-8 whatever the terminal's setting is."""
    from mtron_infer.outputs import Request

    engine.add(Request(prompt, params))
    begin, output = time.monotonic(), None
    while engine.is_busy:
        for output in engine.step():
            sys.stdout.buffer.write(output.text.encode(errors="replace"))
            sys.stdout.buffer.flush()
    seconds = time.monotonic() - begin
    if output is not None:
        if sys.stdout.isatty():
            print(flush=True)
        _note(
            f"{output.num_generated} tokens in {seconds:.1f} s, "
            f"{output.num_generated / max(seconds, 1e-9):.0f} tokens/s, "
            f"ended by {output.finish_reason}"
        )
        if output.finish_reason == "abort":
            raise ValueError("the model gave numbers that are not finite; its weights are broken")


def _name_of(checkpoint: Path) -> str:
    path = checkpoint.resolve()
    return path.parent.name if path.name.startswith("step-") else path.name


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """Turn what the user can mend into one paragraph on standard error and a non-zero exit."""
    try:
        yield
    except BrokenPipeError:
        # Whoever read the output has seen enough; nothing may be flushed into the closed pipe.
        sys.stdout = None
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        if debug:
            raise
        _note(f"error: {_describe(error)}")
        raise typer.Exit(1) from None


def _describe(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problems = error.errors(include_url=False, include_context=False)
    return "; ".join(
        f"{'.'.join(map(str, p['loc']))}: {p['msg']}, got {p['input']!r}" if p["loc"] else p["msg"]
        for p in problems
    )


def main() -> None:
    """Entry point of the command line."""
    app()
