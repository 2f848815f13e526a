"""The one function that converts."""

from pathlib import Path

from mtron_ckpt.conversion.detect import FORMAT_NAMES, Format, detect_format, require_format
from mtron_ckpt.conversion.hf_target import DEFAULT_SHARD_BYTES
from mtron_ckpt.conversion.progress import Progress
from mtron_ckpt.conversion.publish import check_destination, publish_directory
from mtron_ckpt.conversion.report import ConvertReport


def convert(
    src: str | Path,
    dst: str | Path,
    to: Format = "hf",
    overwrite: bool = False,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> ConvertReport:
    """Converts a checkpoint to another format, tensor by tensor, without torch.

    The weights stay bit for bit what they were. The destination appears whole or not at all.

    Args:
        src: an mtron checkpoint (a root stands for its newest step) or a Hugging Face model
            directory; which of them is told from its content.
        dst: the directory to write.
        to: "hf" for a Hugging Face model directory, "mtron" for a root with one step.
        overwrite: replace `dst` if it holds a checkpoint.
        max_shard_bytes: upper bound of the data in one weight file of a Hugging Face model.
        progress: told about bytes done and bytes to do.

    Raises:
        ValueError: naming what is wrong with source or destination and how to mend it.
        CorruptCheckpoint: if data of an mtron source is damaged.
        OSError: if something cannot be read or written.
    """
    source, destination = Path(src), Path(dst)
    if to not in FORMAT_NAMES:
        raise ValueError(f"to: unknown format, got {to!r}; use {' or '.join(FORMAT_NAMES)}")
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes: must be positive, got {max_shard_bytes}")
    found = require_format(source)
    if found == to:
        raise ValueError(f"{source}: is in {FORMAT_NAMES[to]} format already; nothing to convert")
    _check_apart(source, destination)
    check_destination(destination, overwrite, lambda path: detect_format(path) is not None)
    # Imported here, so that commands which do not convert need not wait for tensor libraries.
    from mtron_ckpt.conversion.export_hf import export_hf
    from mtron_ckpt.conversion.import_hf import import_hf

    with publish_directory(destination) as staging:
        if to == "hf":
            converted = export_hf(source, staging, max_shard_bytes, progress)
        else:
            converted = import_hf(source, staging, progress)
    return ConvertReport(
        **vars(converted),
        source=source,
        source_format=found,
        destination=destination,
        target_format=to,
    )


def _check_apart(source: Path, destination: Path) -> None:
    """Refuse to write into the source or around it."""
    inner, outer = destination.resolve(), source.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise ValueError(
            f"{destination}: source and destination overlap; choose a directory outside {source}"
        )
