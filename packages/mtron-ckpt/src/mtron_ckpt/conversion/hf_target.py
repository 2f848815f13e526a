"""Writes the weights of a Hugging Face model directory, in files of bounded size."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mtron_ckpt.arrays import ArrayInfo
from mtron_ckpt.conversion.hf_source import INDEX_FILE, SINGLE_FILE
from mtron_ckpt.conversion.safetensors_io import write_safetensors

DEFAULT_SHARD_BYTES = 4_000_000_000


def plan_shards(tensors: Mapping[str, ArrayInfo], max_bytes: int) -> list[list[str]]:
    """Distributes tensors over files, in order.

    Args:
        tensors: in the order in which they are to be written.
        max_bytes: upper bound of the data in a file; a larger tensor has a file of its own.

    Returns:
        the names in each file.
    """
    shards: list[list[str]] = []
    room = -1
    for name, info in tensors.items():
        if info.size_bytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= info.size_bytes
    return shards


def write_weights(
    directory: Path,
    tensors: Mapping[str, ArrayInfo],
    read: Callable[[str], np.ndarray],
    max_bytes: int,
) -> None:
    """Writes `model.safetensors`, or numbered files and their index.

    Args:
        directory: where to write.
        tensors: name to dtype and shape, in the order in which they are to be written.
        read: gives the data of one tensor; called once for each, in order.
        max_bytes: upper bound of the data in a file.
    """
    shards = plan_shards(tensors, max_bytes)
    files = [SINGLE_FILE]
    if len(shards) > 1:
        files = [
            f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            for number in range(1, len(shards) + 1)
        ]
    for file, names in zip(files, shards, strict=True):
        write_safetensors(
            directory / file, {name: tensors[name] for name in names}, _each(names, read)
        )
    if len(shards) > 1:
        weight_map = {
            name: file for file, names in zip(files, shards, strict=True) for name in names
        }
        total = sum(info.size_bytes for info in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _each(
    names: Sequence[str], read: Callable[[str], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    for name in names:
        yield name, read(name)
