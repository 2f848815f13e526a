"""From a checkpoint to a model that can generate."""

import tempfile
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

import mtron_ckpt
import mtron_data
import mtron_models
from mtron_ckpt.torch_io import to_torch
from mtron_infer.support import check_generates

Dtype: TypeAlias = Literal["auto", "float64", "float32", "bfloat16", "float16"]
"""Type to compute in."""

_KIND = "param/"
_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights, and what belongs to it.

    Attributes:
        model: in evaluation mode, on its device.
        tokenizer: with which its training text was made.
        config: of the model.
        step: optimizer steps that it was trained for.
        path: directory of the checkpoint's step.
    """

    model: nn.Module
    tokenizer: Any
    config: Any
    step: int
    path: Path


def load(path: str | PathLike[str], *, device: str = "auto", dtype: Dtype = "auto") -> LoadedModel:
    """Load a model and its tokenizer from a checkpoint of mtron.

    Args:
        path: directory of a run's checkpoints, of which the newest is taken, or of one step.
        device: a torch device; `auto` takes CUDA if there is one, else the CPU.
        dtype: to compute in; `auto` takes the widest of the checkpoint, and on a CPU at least
            float32, which is many times faster there than half precision.

    Raises:
        ValueError: the checkpoint holds no model and tokenizer that fit together, or a model that
            does not continue texts, such as an encoder.
        OSError: there is no checkpoint, or it cannot be read.
        mtron_ckpt.CorruptCheckpoint: it is damaged.
    """
    checkpoint = mtron_ckpt.open(path)
    if not isinstance(checkpoint.config.get("model"), dict):
        raise ValueError(f"{checkpoint.path}: its configuration has no section 'model'")
    config: Any = mtron_models.config_from_dict(checkpoint.config["model"])
    tokenizer = _load_tokenizer(checkpoint)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{checkpoint.path}: its tokenizer has {tokenizer.vocab_size} tokens, but its model "
            f"only {config.vocab_size}"
        )
    target = _device(device)
    model = mtron_models.build(config, device=target, dtype=_dtype(dtype, checkpoint, target))
    check_generates(model)
    _fill(model, checkpoint)
    return LoadedModel(model.eval(), tokenizer, config, checkpoint.step, Path(checkpoint.path))


@torch.no_grad()
def _fill(model: nn.Module, checkpoint: Any) -> None:
    parameters = dict(model.named_parameters())
    stored = {name.removeprefix(_KIND) for name in checkpoint.names("param")}
    for problem, names in (
        ("lacks", parameters.keys() - stored),
        ("has, unlike its configuration,", stored - parameters.keys()),
    ):
        if names:
            some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise ValueError(f"{checkpoint.path}: {problem} {len(names)} parameters: {some}")
    for name, parameter in parameters.items():
        shape = tuple(checkpoint.info(_KIND + name).shape)
        if shape != tuple(parameter.shape):
            raise ValueError(
                f"{checkpoint.path}: {name} has the shape {shape}, "
                f"but its configuration says {tuple(parameter.shape)}"
            )
        parameter.copy_(to_torch(checkpoint.read(_KIND + name)))


def _load_tokenizer(checkpoint: Any) -> Any:
    assets = checkpoint.assets
    if _TOKENIZER not in assets:
        raise ValueError(f"{checkpoint.path}: has no tokenizer (assets/{_TOKENIZER})")
    with tempfile.TemporaryDirectory() as directory:
        for name, data in assets.items():
            target = Path(directory) / Path(name).name
            target.write_bytes(data)
        return mtron_data.load_tokenizer(directory)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: {name!r} is no torch device; use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: torch finds no GPU for {name!r}; use cpu or auto")
    return device


def _dtype(name: Dtype, checkpoint: Any, device: torch.device) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    stored = {str(checkpoint.info(n).dtype) for n in checkpoint.names("param")}
    if "float64" in stored:
        return torch.float64
    if device.type == "cpu" or "float32" in stored:
        return torch.float32
    return torch.bfloat16 if "bfloat16" in stored else torch.float16
