"""PEFT's files to an mtron checkpoint of adapters."""

from pathlib import Path
from typing import Any

import mtron_ckpt
from mtron_ckpt.arrays import LocalArray, Metadata
from mtron_ckpt.conversion.adapters.export_peft import CONFIG_FILE, KIND, WEIGHTS_FILE, oriented
from mtron_ckpt.conversion.adapters.names import AdapterNames, module_of, shortest, split_half
from mtron_ckpt.conversion.adapters.peft_config import from_peft
from mtron_ckpt.conversion.detect import require_format
from mtron_ckpt.conversion.families import Family, family_of_hf, family_of_mtron
from mtron_ckpt.conversion.hf_source import read_json_object
from mtron_ckpt.conversion.names import MAX_LISTED, check_tensors
from mtron_ckpt.conversion.report import Converted
from mtron_ckpt.conversion.safetensors_io import SafetensorsReader
from mtron_ckpt.saving import save


def import_peft(source: Path, base: Path, directory: Path) -> Converted:
    """Writes one step, number 0, with the adapters' parameters.

    Args:
        source: a directory with `adapter_config.json` and `adapter_model.safetensors`.
        base: the model that the adapters are for: an mtron checkpoint or a Hugging Face directory,
            of which only the config is read.
        directory: an empty directory that becomes the root.

    Raises:
        ValueError: naming what the source lacks or what cannot be honoured.
    """
    notes: list[str] = []
    values = read_json_object(source / CONFIG_FILE)
    try:
        adapter = from_peft(values, notes)
    except ValueError as error:
        raise ValueError(f"{source / CONFIG_FILE}: {error}") from error
    family, model = read_base(base)
    names = AdapterNames.of(family, model)
    path = source / WEIGHTS_FILE
    if not path.is_file():
        pickled = " (pickled weights are never read)" if any(source.glob("*.bin")) else ""
        raise ValueError(f"{path}: no such file{pickled}; save the adapter as safetensors")
    with SafetensorsReader(path) as reader:
        ours = _our_names(path, names, reader, base)
        expected = {theirs: names.shape(name, adapter["r"]) for theirs, name in ours.items()}
        arrays = {name: oriented(names, name, reader.read(theirs)) for theirs, name in ours.items()}
    found = {theirs: arrays[name].shape for theirs, name in ours.items()}
    check_tensors(str(path), expected, found)
    config = {"model": model, "adapter": adapter | _choices(path, names, set(arrays))}
    whole = {f"{KIND}{name}": LocalArray.whole(array) for name, array in arrays.items()}
    save(directory, whole, Metadata(step=0, config=config)).wait()
    num_bytes = sum(array.nbytes for array in arrays.values())
    return Converted(family.model_type, len(arrays), num_bytes, tuple(notes))


def read_base(base: Path) -> tuple[Family, dict[str, Any]]:
    """The family and our config of a model, in either format.

    Raises:
        ValueError: if it is no model that can be converted.
    """
    if require_format(base) == "mtron":
        checkpoint = mtron_ckpt.open(base)
        model = checkpoint.config.get("model")
        if not isinstance(model, dict):
            raise ValueError(f"{base}: config.model: missing; the checkpoint holds no model")
        return family_of_mtron(str(base), model), model
    file = base / "config.json"
    values = read_json_object(file)
    family = family_of_hf(str(file), values)
    try:
        return family, family.from_hf(values, [])
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _our_names(
    path: Path, names: AdapterNames, reader: SafetensorsReader, base: Path
) -> dict[str, str]:
    """Our names by those in the file.

    Raises:
        ValueError: if a tensor in it is of no linear module that is one here too.
    """
    known = names.by_theirs()
    strange = [name for name in reader.tensors if name not in known]
    if strange:
        more = len(strange) - MAX_LISTED
        listed = ", ".join(strange[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
        raise ValueError(
            f"{path}: {listed}: belongs to no linear module of its own in {base}; embeddings, "
            "stacked experts and matrices that are several here cannot be converted"
        )
    return {theirs: known[theirs] for theirs in reader.tensors}


def _choices(path: Path, names: AdapterNames, ours: set[str]) -> dict[str, Any]:
    """The modules with adapters and those trained whole, as our config writes them.

    Raises:
        ValueError: if half of an adapter or a part of a module is missing, or PEFT did otherwise.
    """
    linears = {module for name in ours for module, half in (split_half(name),) if half}
    saved = {module_of(name) for name in ours if not split_half(name)[1]}
    wanted = {f"{module}.lora_{half}.weight" for module in linears for half in "AB"}
    wanted |= {name for name in names.tensors.ours if module_of(name) in saved}
    missing = sorted(wanted - ours)
    if missing:
        raise ValueError(f"{path}: {missing[0]} is missing, and {len(missing) - 1} more")
    if "embed" in saved and "head.weight" not in names.tensors.ours:
        raise ValueError(
            f"{path}: {names.theirs('embed.weight')}: is trained, but the head has the same "
            "matrix (tie_word_embeddings), which PEFT does not change with it"
        )
    modules = {module_of(name) for name in names.tensors.ours}
    return {
        "bias": "none",
        "exclude_modules": [],
        "modules_to_save": shortest(saved, modules),
        "target_modules": shortest(linears, modules),
    }
