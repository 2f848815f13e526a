"""The mesh: which processes take part, and on which device each computes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
"""Axes of the dense view, outermost first."""


@dataclass(frozen=True)
class Mesh:
    """A grid of processes with named axes, as a value: pass it, never look it up.

    This release runs one process, so every axis has size 1 and this process has rank 0 on it.
    Code asks the mesh all the same, because that is the question that stays right.

    Attributes:
        device: where this process keeps its parameters and computes.
    """

    device: torch.device

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], device: str = "auto") -> "Mesh":
        """Build the mesh that the launcher's environment variables describe.

        Args:
            environment: usually `os.environ`; `WORLD_SIZE` is read.
            device: `auto` (CUDA if there is one, else CPU), or a torch device such as `cpu`.

        Raises:
            ValueError: more than one process was launched, or the device does not exist here.
        """
        world_size = environment.get("WORLD_SIZE", "1")
        if world_size != "1":
            raise ValueError(
                f"WORLD_SIZE: this release runs one process, got {world_size}; "
                "start it without torchrun, or with --nproc-per-node 1"
            )
        return cls(_device(device))

    def size(self, axis: str) -> int:
        """Return the number of ranks along `axis`, one of `AXES`."""
        _check_axis(axis)
        return 1

    def rank(self, axis: str) -> int:
        """Return this process's position along `axis`, one of `AXES`."""
        _check_axis(axis)
        return 0


def _check_axis(axis: str) -> None:
    if axis not in AXES:
        raise ValueError(f"mesh axis: there is no axis {axis!r}; use one of {', '.join(AXES)}")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: {name!r} is no torch device; use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {name!r} was asked for, but torch finds no GPU; use cpu or auto")
    return device
