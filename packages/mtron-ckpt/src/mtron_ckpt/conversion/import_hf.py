"""A Hugging Face model directory to an mtron checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtron_ckpt.arrays import ArrayInfo, LocalArray, Metadata
from mtron_ckpt.conversion.families import Family, family_of_hf
from mtron_ckpt.conversion.hf_source import HuggingFaceSource
from mtron_ckpt.conversion.names import NameTable, check_tensors
from mtron_ckpt.conversion.pieces import TensorMap, one_dtype
from mtron_ckpt.conversion.progress import Progress, reading_progress
from mtron_ckpt.conversion.report import Converted
from mtron_ckpt.conversion.side_files import collect_assets
from mtron_ckpt.saving import save
from mtron_ckpt.staging import BUFFER_BYTES, StagingPool

_KIND = "param"
_STAGED_BUFFERS = 4
"""Reading may run this far ahead of writing; more would only take memory."""


@dataclass(frozen=True)
class _Tensor:
    """A tensor of ours, read from the files when its values are asked for."""

    info: ArrayInfo
    name: str
    read: Callable[[str], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.info.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        assert dtype in (None, self.dtype), "weights are never cast"
        return self.read(self.name)


def import_hf(source: Path, directory: Path, progress: Progress | None) -> Converted:
    """Writes one step, number 0, with the weights and nothing to resume training from.

    Args:
        source: a Hugging Face model directory.
        directory: an empty directory that becomes the root.
        progress: told about bytes done.

    Raises:
        ValueError: naming what the source lacks or what cannot be honoured.
    """
    notes: list[str] = []
    with HuggingFaceSource(source) as hf:
        family = family_of_hf(f"{source}/config.json", hf.config)
        model = _model_config(source, family, hf.config, notes)
        model = family.held(model, hf.tensors, notes)
        tensors, files = _plan(hf, family, model, notes)
        infos = _our_infos(hf, tensors, files)
        num_bytes = sum(info.size_bytes for info in infos.values())
        report = reading_progress(progress, infos)
        read_theirs = tensors.remembering_theirs(lambda name: hf.read(files[name]))

        def read(name: str) -> np.ndarray:
            return report(name, tensors.read_ours(name, infos[name].dtype, read_theirs))

        arrays = {
            f"{_KIND}/{name}": LocalArray.whole(_Tensor(info, name, read))
            for name, info in infos.items()
        }
        assets = collect_assets(source, notes)
        metadata = Metadata(step=0, config={"model": model}, assets=assets)
        save(directory, arrays, metadata, pool=StagingPool(_STAGED_BUFFERS * BUFFER_BYTES)).wait()
    return Converted(family.model_type, len(tensors.theirs), num_bytes, tuple(notes))


def _model_config(
    source: Path, family: Family, hf: dict[str, Any], notes: list[str]
) -> dict[str, Any]:
    try:
        return family.from_hf(hf, notes)
    except ValueError as error:
        raise ValueError(f"{source / 'config.json'}: {error}") from error


def _plan(
    hf: HuggingFaceSource, family: Family, model: dict[str, Any], notes: list[str]
) -> tuple[TensorMap, dict[str, str]]:
    """All tensors, complete and in order, and what the files call each of theirs."""
    try:
        tensors = family.tensors(model, len(hf.tensors))
    except ValueError as error:
        raise ValueError(f"{hf.path / 'config.json'}: {error}") from error
    table = family.architecture(model).table
    files = _files(hf, table, tensors)
    derived = [name for name in files if table.is_derived(name)]
    if derived:
        notes.append(f"left behind: {len(derived)} buffers that follow from the config")
    found = {name: hf.tensors[file].shape for name, file in files.items()}
    copies = {name: original for name, original in family.copies(model).items() if name in found}
    for name in (*derived, *copies):
        del found[name]
    check_tensors(str(hf.path), tensors.theirs, found)
    for name, original in copies.items():
        _check_copy(hf, files[name], files[original])
        notes.append(f"left behind: {name}, a copy of {original}")
    return tensors, files


def _files(hf: HuggingFaceSource, table: NameTable, tensors: TensorMap) -> dict[str, str]:
    """Names of tensors as they are called today to what the files call them."""
    files: dict[str, str] = {}
    for file in hf.tensors:
        name = file if file in tensors.theirs else table.modern_name(file)
        if name in files:
            raise ValueError(
                f"{hf.path}: {file} and {files[name]} are both called {name} today; keep one"
            )
        files[name] = file
    return files


def _our_infos(
    hf: HuggingFaceSource, tensors: TensorMap, files: Mapping[str, str]
) -> dict[str, ArrayInfo]:
    """Our names to dtypes and shapes; what is stacked or fused must be of one dtype."""
    infos: dict[str, ArrayInfo] = {}
    for name, shape in tensors.ours.items():
        dtypes = {their: hf.tensors[files[their]].dtype for their in tensors.theirs_of(name)}
        infos[name] = ArrayInfo(one_dtype(str(hf.path), name, dtypes), shape)
    return infos


def _check_copy(hf: HuggingFaceSource, name: str, original: str) -> None:
    """A tied model may store both tensors, but then they must be one."""
    first, second = hf.tensors[name], hf.tensors[original]
    if first == second and np.array_equal(
        hf.read(name).reshape(-1).view(np.uint8), hf.read(original).reshape(-1).view(np.uint8)
    ):
        return
    raise ValueError(
        f"{hf.path}: {name}: differs from {original} although config.json ties them "
        "(tie_word_embeddings); set that to false to keep both"
    )
