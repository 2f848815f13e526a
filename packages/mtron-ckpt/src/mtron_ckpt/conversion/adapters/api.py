"""The one function that converts adapters, and its command."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mtron_ckpt.conversion.detect import detect_format
from mtron_ckpt.conversion.publish import check_destination, publish_directory
from mtron_ckpt.conversion.report import Converted

AdapterFormat = Literal["peft", "mtron"]
EXAMPLE = "Example: mtron-ckpt convert-adapter tuned adapter --to peft"


def convert_adapter(
    src: str | Path,
    dst: str | Path,
    to: AdapterFormat = "peft",
    base: str | Path | None = None,
    overwrite: bool = False,
) -> Converted:
    """Converts low-rank adapters (LoRA) between mtron and PEFT, without torch, bit for bit.

    Args:
        src: an mtron checkpoint that holds the parameters of adapters only, or a directory with
            PEFT's `adapter_config.json` and `adapter_model.safetensors`.
        dst: the directory to write.
        to: "peft" for such a directory, "mtron" for a root with one step.
        base: the model that the adapters are for, in either format; needed for "mtron", because
            PEFT's files do not say what it is.
        overwrite: replace `dst` if it holds a checkpoint or an adapter.

    Raises:
        ValueError: naming what is wrong with source or destination and how to mend it.
        CorruptCheckpoint: if data of an mtron source is damaged.
        OSError: if something cannot be read or written.
    """
    source, destination = Path(src), Path(dst)
    if to not in ("peft", "mtron"):
        raise ValueError(f"to: unknown format, got {to!r}; use 'peft' or 'mtron'")
    if to == "mtron" and base is None:
        raise ValueError("base: missing; give the model that the adapter is for, with its config")
    check_destination(destination, overwrite, _is_replaceable)
    # Imported here, so that commands which do not convert need not wait for tensor libraries.
    from mtron_ckpt.conversion.adapters.export_peft import export_peft
    from mtron_ckpt.conversion.adapters.import_peft import import_peft

    with publish_directory(destination) as staging:
        if base is not None and to == "mtron":
            return import_peft(source, Path(base), staging)
        return export_peft(source, staging)


def convert_adapter_command(
    src: Annotated[str, typer.Argument(metavar="SRC", help="mtron checkpoint or PEFT directory.")],
    dst: Annotated[str, typer.Argument(metavar="DST", help="Directory to write.")],
    to: Annotated[AdapterFormat, typer.Option(help="Format of DST.")],
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model of the adapter, for mtron.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace DST if it holds a checkpoint.")
    ] = False,
) -> None:
    """Convert a low-rank adapter between mtron and PEFT; weights stay bitwise the same."""
    report = convert_adapter(src, dst, to=to, base=base, overwrite=overwrite)
    typer.echo(
        f"{dst}: adapter of {report.model_type}, {report.num_tensors} tensors, "
        f"{report.num_bytes / 1e6:.1f} MB"
    )
    for note in report.notes:
        typer.echo(f"  {note}")


def _is_replaceable(path: Path) -> bool:
    return (path / "adapter_config.json").exists() or detect_format(path) is not None
