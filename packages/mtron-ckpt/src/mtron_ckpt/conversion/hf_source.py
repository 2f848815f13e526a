"""Reads a Hugging Face model directory: config, weights in one or several files, side files."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from mtron_ckpt.arrays import ArrayInfo
from mtron_ckpt.conversion.safetensors_io import SafetensorsReader

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class HuggingFaceSource:
    """An open Hugging Face model directory.

    Attributes:
        path: the directory.
        config: the content of `config.json`.
        tensors: name to dtype and shape of every tensor in the weight files.

    Raises:
        ValueError: if a file is missing or malformed; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_json_object(path / "config.json")
        self._readers: dict[str, SafetensorsReader] = {}
        try:
            self._files = self._locate()
        except BaseException:
            self.close()
            raise
        self.tensors: dict[str, ArrayInfo] = {
            name: self._readers[file].tensors[name] for name, file in self._files.items()
        }

    def _locate(self) -> dict[str, str]:
        """Opens the weight files and says which of them holds each tensor."""
        index = self.path / INDEX_FILE
        if not index.exists():
            if not (self.path / SINGLE_FILE).exists():
                raise ValueError(self._no_weights())
            return dict.fromkeys(self._open(SINGLE_FILE).tensors, SINGLE_FILE)
        files = read_json_object(index).get("weight_map")
        if not isinstance(files, dict) or not files:
            raise ValueError(f"{index}: weight_map: must map tensor names to files, got {files!r}")
        for file in files.values():
            if not isinstance(file, str) or Path(file).name != file:
                raise ValueError(f"{index}: weight_map: must name files beside it, got {file!r}")
        for file in dict.fromkeys(files.values()):
            for name in self._open(file).tensors:
                if files.get(name) != file:
                    raise ValueError(
                        f"{index}: weight_map: {file} holds {name}, which the index places in "
                        f"{files.get(name)!r}; the files do not belong together"
                    )
        for name, file in files.items():
            if name not in self._readers[file].tensors:
                raise ValueError(
                    f"{index}: weight_map: {name} is not in {file}; "
                    "the files do not belong together"
                )
        return files

    def _open(self, file: str) -> SafetensorsReader:
        path = self.path / file
        if not path.is_file():
            raise ValueError(f"{path}: missing weight file; download the model completely")
        self._readers[file] = SafetensorsReader(path)
        return self._readers[file]

    def _no_weights(self) -> str:
        if any(self.path.glob("*.bin")):
            return (
                f"{self.path}: holds pickled weights (*.bin), which are never read because they "
                "can run code; save the model again as safetensors"
            )
        return f"{self.path}: holds no {SINGLE_FILE}; download the model completely"

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor."""
        return self._readers[self._files[name]].read(name)

    def close(self) -> None:
        """Closes the weight files."""
        for reader in self._readers.values():
            reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that must hold an object.

    Raises:
        ValueError: if it is missing, is not JSON or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; download the model completely") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON, got {error}; repair or replace it") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object, got {type(value).__name__}")
    return value
