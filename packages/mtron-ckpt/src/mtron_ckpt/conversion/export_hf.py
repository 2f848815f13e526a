"""An mtron checkpoint to a Hugging Face model directory."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mtron_ckpt
from mtron_ckpt.arrays import ArrayInfo
from mtron_ckpt.conversion.families import Family, family_of_mtron
from mtron_ckpt.conversion.hf_target import write_weights
from mtron_ckpt.conversion.names import check_tensors
from mtron_ckpt.conversion.progress import Progress, reading_progress
from mtron_ckpt.conversion.report import Converted
from mtron_ckpt.conversion.side_files import (
    HF_CONFIG,
    HF_GENERATION_CONFIG,
    TOKENIZER_FILES,
    write_configs,
    write_tokenizer,
)
from mtron_ckpt.storage import check_space

_KIND = "param"
_LOADABLE = ("float64", "float32", "bfloat16", "float16")
"""Dtypes of weights that `transformers` can load, as it calls them."""


def export_hf(
    source: Path, directory: Path, max_shard_bytes: int, progress: Progress | None
) -> Converted:
    """Writes weights, configs and tokenizer into an empty directory.

    Args:
        source: a root of mtron checkpoints or one step.
        directory: where to write.
        max_shard_bytes: upper bound of the data in one weight file.
        progress: told about bytes done.

    Raises:
        ValueError: if the model cannot be expressed in that format.
        CorruptCheckpoint: if data of the source is damaged.
    """
    checkpoint = mtron_ckpt.open(source)
    name = str(checkpoint.path)
    model = checkpoint.config.get("model")
    if not isinstance(model, dict):
        raise ValueError(f"{name}: config.model: missing; the checkpoint holds no language model")
    family = family_of_mtron(name, model)
    tensors, ours = _plan(checkpoint, family, model)
    num_bytes = sum(info.size_bytes for info in tensors.values())
    check_space(directory, num_bytes)
    notes = _left_behind(checkpoint)
    try:
        write_configs(directory, checkpoint.assets, family, model, _main_dtype(tensors))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    write_tokenizer(directory, checkpoint.assets, model, notes)
    report = reading_progress(progress, tensors)
    write_weights(
        directory,
        tensors,
        lambda theirs: report(theirs, checkpoint.read(ours[theirs])),
        max_shard_bytes,
    )
    return Converted(family.model_type, len(tensors), num_bytes, tuple(notes))


def _plan(
    checkpoint: "mtron_ckpt.Checkpoint", family: Family, model: dict[str, Any]
) -> tuple[dict[str, ArrayInfo], dict[str, str]]:
    """What to write under which name, and the name of each in the checkpoint."""
    name = str(checkpoint.path)
    infos = {array: checkpoint.info(array) for array in checkpoint.names(_KIND)}
    try:
        pairs = family.tensors(model, len(infos))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{name}: config.model: {error} is missing or malformed; "
            "the checkpoint's config is incomplete"
        ) from error
    expected = {f"{_KIND}/{pair.ours}": pair.shape for pair in pairs}
    check_tensors(name, expected, {array: info.shape for array, info in infos.items()})
    tensors: dict[str, ArrayInfo] = {}
    for pair in pairs:
        info = infos[f"{_KIND}/{pair.ours}"]
        if str(info.dtype) not in _LOADABLE:
            raise ValueError(
                f"{name}: {pair.ours}: transformers loads only {', '.join(_LOADABLE)} weights, "
                f"got {info.dtype}"
            )
        tensors[pair.theirs] = ArrayInfo(info.dtype, pair.shape)
    return tensors, {pair.theirs: f"{_KIND}/{pair.ours}" for pair in pairs}


def _main_dtype(tensors: Mapping[str, ArrayInfo]) -> str:
    """The dtype that most of the data has."""
    sizes: Counter[str] = Counter()
    for info in tensors.values():
        sizes[str(info.dtype)] += info.size_bytes
    return sizes.most_common(1)[0][0]


def _left_behind(checkpoint: "mtron_ckpt.Checkpoint") -> list[str]:
    """What a Hugging Face directory has no place for, one line each."""
    notes = []
    kinds = sorted({array.partition("/")[0] for array in checkpoint.names()} - {_KIND})
    if kinds:
        notes.append(f"left behind: optimizer and other arrays ({', '.join(kinds)})")
    if checkpoint.state:
        notes.append(f"left behind: training state ({', '.join(sorted(checkpoint.state))})")
    sections = sorted(set(checkpoint.config) - {"model"})
    if sections:
        notes.append(f"left behind: config of the run ({', '.join(sections)})")
    known = {*TOKENIZER_FILES, HF_CONFIG, HF_GENERATION_CONFIG}
    assets = sorted(set(checkpoint.assets) - known)
    if assets:
        notes.append(f"left behind: assets ({', '.join(assets)})")
    return notes
