"""Which format a directory is in, told from its content."""

from pathlib import Path
from typing import Literal

Format = Literal["hf", "mtron"]

FORMAT_NAMES: dict[Format, str] = {"hf": "Hugging Face", "mtron": "mtron"}


def detect_format(path: Path) -> Format | None:
    """The format of a checkpoint directory, or None if it is not one.

    Args:
        path: a directory: a root of steps or one step of mtron, or a Hugging Face model.
    """
    if not path.is_dir():
        return None
    if (path / "MANIFEST.json").exists() or any(path.glob("step-*")):
        return "mtron"
    if (path / "config.json").exists():
        return "hf"
    return None


def require_format(path: Path) -> Format:
    """The format of a source.

    Raises:
        ValueError: if there is no such directory or it holds no checkpoint.
    """
    found = detect_format(path)
    if found is not None:
        return found
    if not path.exists():
        raise ValueError(f"{path}: no such directory; give the path of a checkpoint")
    if not path.is_dir():
        raise ValueError(f"{path}: not a directory; give the directory that holds the checkpoint")
    raise ValueError(
        f"{path}: holds no checkpoint; expected steps written by mtron (step-00000100/) or a "
        "Hugging Face model (config.json and *.safetensors)"
    )
