"""What a number depends on: model, tokenizer, data, configuration, software."""

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import mtron_ckpt
from mtron_eval.config import EvalConfig
from mtron_eval.documents import DataFile

_PACKAGES = (
    "mtron-eval",
    "mtron-infer",
    "mtron-models",
    "mtron-data",
    "mtron-ckpt",
    "torch",
    "numpy",
    "tokenizers",
)
_TOKENIZER_FILE = "tokenizer.json"
_MANIFEST_FILE = "MANIFEST.json"


@dataclass(frozen=True)
class CheckpointInfo:
    """What is known of a checkpoint before its weights are read.

    Attributes:
        path: directory of the step.
        step: its number.
        manifest_sha256: hash of the manifest, which has the checksums of all other files.
        tokenizer_sha256: hash of `tokenizer.json`; None without one.
        model: the model's config.
    """

    path: Path
    step: int
    manifest_sha256: str
    tokenizer_sha256: str | None
    model: dict[str, Any]

    @property
    def max_context(self) -> int:
        """Most tokens before a predicted one: together they fill the engine's context."""
        return int(self.model["max_position_embeddings"]) - 1

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "checkpoint": str(self.path),
            "step": self.step,
            "manifest_sha256": self.manifest_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "config": self.model,
        }


def read_checkpoint_info(path: str) -> CheckpointInfo:
    """Reads what a checkpoint says of itself; a root stands for its newest step.

    Raises:
        ValueError: if it is not a checkpoint or holds no language model.
        OSError: if it cannot be read.
    """
    checkpoint = mtron_ckpt.open(path)
    model = checkpoint.config.get("model")
    if not isinstance(model, dict) or "max_position_embeddings" not in model:
        raise ValueError(f"{checkpoint.path}: config.model: describes no language model")
    tokenizer = checkpoint.assets.get(_TOKENIZER_FILE)
    return CheckpointInfo(
        path=Path(checkpoint.path),
        step=checkpoint.step,
        manifest_sha256=_sha256((Path(checkpoint.path) / _MANIFEST_FILE).read_bytes()),
        tokenizer_sha256=None if tokenizer is None else _sha256(tokenizer),
        model=model,
    )


def describe_run(
    model: dict[str, Any], config: EvalConfig, data: Sequence[DataFile]
) -> dict[str, Any]:
    """Everything that the report says besides the results.

    Args:
        model: what is known of the model and of how it computes.
        config: with all defaults filled in.
        data: the data files.
    """
    return {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "model": model,
        "data": [
            {
                "path": file.path,
                "bytes": file.num_bytes,
                "sha256": file.sha256,
                "documents": len(file.documents),
            }
            for file in data
        ],
        "environment": _environment(),
    }


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
