"""An mtron checkpoint of adapters to PEFT's files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import mtron_ckpt
from mtron_ckpt.arrays import ArrayInfo
from mtron_ckpt.conversion.adapters.names import (
    PREFIX,
    AdapterNames,
    is_named,
    module_of,
    shortest,
    split_half,
)
from mtron_ckpt.conversion.adapters.peft_config import to_peft
from mtron_ckpt.conversion.families import family_of_mtron
from mtron_ckpt.conversion.names import check_tensors
from mtron_ckpt.conversion.report import Converted
from mtron_ckpt.conversion.safetensors_io import write_safetensors

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
KIND = "param/"


def export_peft(source: Path, directory: Path) -> Converted:
    """Writes `adapter_config.json` and `adapter_model.safetensors` into an empty directory.

    Args:
        source: a root of mtron checkpoints or one step, which hold adapters.
        directory: where to write.

    Raises:
        ValueError: if the adapters cannot be expressed in that format.
        CorruptCheckpoint: if data of the source is damaged.
    """
    checkpoint = mtron_ckpt.open(source)
    where = str(checkpoint.path)
    model, adapter = (_table(checkpoint, name) for name in ("model", "adapter"))
    family = family_of_mtron(where, model)
    names = AdapterNames.of(family, model)
    infos = {n.removeprefix(KIND): checkpoint.info(n) for n in checkpoint.names("param")}
    try:
        theirs = {ours: names.theirs(ours) for ours in infos}
        linears, saved = _modules(names, list(infos), adapter)
        config = to_peft(adapter, *_choices(names, linears, saved))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    halves = {ours: names.shape(ours, config["r"]) for ours in infos}
    check_tensors(where, halves, {ours: info.shape for ours, info in infos.items()})

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for ours, name in theirs.items():
            yield name, oriented(names, ours, checkpoint.read(f"{KIND}{ours}"))

    planned = {
        name: ArrayInfo(infos[ours].dtype, _their_shape(names, ours, infos[ours].shape))
        for ours, name in theirs.items()
    }
    write_safetensors(directory / WEIGHTS_FILE, planned, tensors())
    text = json.dumps(config, indent=2) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
    num_bytes = sum(info.size_bytes for info in infos.values())
    return Converted(family.model_type, len(infos), num_bytes, tuple(_left_behind(checkpoint)))


def oriented(names: AdapterNames, ours: str, array: np.ndarray) -> np.ndarray:
    """A tensor as the other format orients it; adapters are the same in both."""
    if split_half(ours)[1] or array.ndim != 2:
        return array
    return array.T if is_transposed(names, ours) else array


def is_transposed(names: AdapterNames, ours: str) -> bool:
    """Whether the other format keeps one of our tensors transposed."""
    return names.tensors.is_transposed(ours)


def _their_shape(names: AdapterNames, ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return oriented(names, ours, np.empty(shape, np.bool_)).shape


def _table(checkpoint: "mtron_ckpt.Checkpoint", name: str) -> dict[str, Any]:
    table = checkpoint.config.get(name)
    if not isinstance(table, dict):
        raise ValueError(
            f"{checkpoint.path}: config.{name}: missing; the checkpoint holds no adapters of a "
            "language model"
        )
    return table


def _modules(
    names: AdapterNames, ours: list[str], adapter: dict[str, Any]
) -> tuple[set[str], set[str]]:
    """Our linear modules with an adapter, and the modules that were trained whole.

    Raises:
        ValueError: if there are no adapters, half of one, or other tensors.
    """
    linears = {module for name in ours for module, half in (split_half(name),) if half}
    whole = [name for name in ours if not split_half(name)[1]]
    if not linears:
        raise ValueError("the checkpoint holds no adapters (*.lora_A.weight)")
    missing = [f"{m}.lora_{h}.weight" for m in sorted(linears) for h in "AB"]
    missing = [name for name in missing if name not in ours]
    patterns = adapter.get("modules_to_save") or ()
    foreign = [name for name in whole if not is_named(module_of(name), patterns)]
    if foreign:
        raise ValueError(
            f"{foreign[0]}: is neither of an adapter nor of modules_to_save, got "
            f"{list(patterns)}; save the adapters' parameters only"
        )
    saved = {module_of(name) for name in whole}
    missing += [n for n in names.tensors.ours if module_of(n) in saved and n not in ours]
    if missing:
        raise ValueError(f"{missing[0]}: missing, and {len(missing) - 1} more; save them as well")
    return linears, saved


def _choices(
    names: AdapterNames, linears: set[str], saved: set[str]
) -> tuple[list[str], list[str], bool]:
    """Their names of these modules, and whether the linear ones are transposed.

    Raises:
        ValueError: if PEFT would not do the same.
    """

    def their(module: str) -> str:
        name = names.theirs(f"{module}.lora_A.weight").removeprefix(PREFIX)
        return name.removesuffix(".lora_A.weight")

    modules = {module_of(name) for name in names.tensors.theirs}
    targets = shortest({their(module) for module in linears}, modules)
    whole = {
        module_of(names.theirs(name).removeprefix(PREFIX))
        for name in names.tensors.ours
        if module_of(name) in saved
    }
    if "embed" in saved and "head.weight" not in names.tensors.ours:
        raise ValueError(
            "embed: was trained, but PEFT would train a copy beside the head's matrix, which is "
            "the same here (tie_word_embeddings); leave it out of modules_to_save"
        )
    kinds = {is_transposed(names, f"{module}.weight") for module in linears}
    if len(kinds) > 1:
        raise ValueError("target_modules: PEFT wants all matrices transposed, or none")
    return targets, sorted(whole), kinds.pop()


def _left_behind(checkpoint: "mtron_ckpt.Checkpoint") -> Iterator[str]:
    """What PEFT's files have no place for, one line each."""
    kinds = sorted({array.partition("/")[0] for array in checkpoint.names()} - {"param"})
    if kinds:
        yield f"left behind: optimizer and other arrays ({', '.join(kinds)})"
    if checkpoint.state:
        yield f"left behind: training state ({', '.join(sorted(checkpoint.state))})"
    if checkpoint.assets:
        yield f"left behind: assets ({', '.join(sorted(checkpoint.assets))})"
