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
from mtron_ckpt.conversion.pieces import TensorMap, one_dtype
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
    tensors = _plan(checkpoint, family, model)
    infos = _their_infos(checkpoint, tensors)
    num_bytes = sum(info.size_bytes for info in infos.values())
    check_space(directory, num_bytes)
    notes = _left_behind(checkpoint)
    try:
        write_configs(directory, checkpoint.assets, family, model, _main_dtype(infos))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    write_tokenizer(directory, checkpoint.assets, model, notes)
    report = reading_progress(progress, infos)
    read_ours = tensors.remembering_ours(lambda ours: checkpoint.read(f"{_KIND}/{ours}"))
    write_weights(
        directory,
        infos,
        lambda theirs: report(theirs, tensors.read_theirs(theirs, infos[theirs].dtype, read_ours)),
        max_shard_bytes,
    )
    return Converted(family.model_type, len(infos), num_bytes, tuple(notes))


def _plan(checkpoint: "mtron_ckpt.Checkpoint", family: Family, model: dict[str, Any]) -> TensorMap:
    """All tensors of the model, which the checkpoint has."""
    name = str(checkpoint.path)
    found = {array: checkpoint.info(array).shape for array in checkpoint.names(_KIND)}
    entries = sum(shape[0] if shape else 1 for shape in found.values())
    try:
        tensors = family.tensors(model, len(found), entries)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{name}: config.model: {error} is missing or malformed; "
            "the checkpoint's config is incomplete"
        ) from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    expected = {f"{_KIND}/{ours}": shape for ours, shape in tensors.ours.items()}
    check_tensors(name, expected, found)
    return tensors


def _their_infos(checkpoint: "mtron_ckpt.Checkpoint", tensors: TensorMap) -> dict[str, ArrayInfo]:
    """What to write under which name."""
    name = str(checkpoint.path)
    infos: dict[str, ArrayInfo] = {}
    for theirs, shape in tensors.theirs.items():
        dtypes = {
            ours: checkpoint.info(f"{_KIND}/{ours}").dtype for ours in tensors.ours_of(theirs)
        }
        dtype = one_dtype(name, theirs, dtypes)
        if str(dtype) not in _LOADABLE:
            raise ValueError(
                f"{name}: {next(iter(dtypes))}: transformers loads only {', '.join(_LOADABLE)} "
                f"weights, got {dtype}"
            )
        infos[theirs] = ArrayInfo(dtype, shape)
    return infos


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
