"""Optimizer state by the names of the parameters: the form that checkpoints keep."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

STATE_TENSORS = {"adamw": ("exp_avg", "exp_avg_sq"), "muon": ("momentum_buffer",)}
"""State tensors of each algorithm; each has the shape of its parameter."""


def export_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of an optimizer that `build_optimizer` made.

    Rates and other settings are not state: they come from the configuration.

    Returns:
        The tensors, named `"<state>/<parameter>"` as in `exp_avg/embed.weight`, which share
        memory with the optimizer; and what is not a tensor, which JSON can hold: `step` counts
        AdamW's updates, `step_of` those of parameters that had fewer, and `fresh` names the
        parameters that have never been updated.
    """
    tensors: dict[str, Tensor] = {}
    steps: dict[str, int] = {}
    fresh: list[str] = []
    for name, parameter, algorithm in _parameters(optimizer):
        state = optimizer.state.get(parameter)
        if not state:
            fresh.append(name)
            continue
        for key in STATE_TENSORS[algorithm]:
            tensors[f"{key}/{name}"] = state[key]
        if "step" in state:
            steps[name] = int(state["step"])
    step = max(steps.values(), default=0)
    fewer = {name: count for name, count in steps.items() if count != step}
    return tensors, {"step": step, "step_of": fewer, "fresh": fresh}


def load_state(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> None:
    """Give an optimizer that `build_optimizer` made the state that `export_state` returned.

    Args:
        optimizer: over the same parameters, with the same algorithms.
        tensors: copied.
        scalars: as exported.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape or dtype. The optimizer is
            then as it was.
    """
    states: dict[int, dict[str, Tensor]] = {}
    fresh, used = set(scalars["fresh"]), set[str]()
    for index, (name, parameter, algorithm) in enumerate(_parameters(optimizer)):
        if name in fresh:
            continue
        keys = {key: f"{key}/{name}" for key in STATE_TENSORS[algorithm]}
        used.update(keys.values())
        states[index] = {
            key: _copy(full_name, tensors, parameter) for key, full_name in keys.items()
        }
        if algorithm == "adamw":
            count = scalars["step_of"].get(name, scalars["step"])
            states[index]["step"] = torch.tensor(float(count), dtype=torch.float32)
    unknown = sorted(tensors.keys() - used)
    if unknown:
        raise ValueError(
            f"{unknown[0]}: this optimizer has no such state ({len(unknown)} such tensors); "
            "resume with the model and the optim section that the state was saved with"
        )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def _parameters(optimizer: Optimizer) -> Iterator[tuple[str, Tensor, str]]:
    """Yield name, parameter and algorithm in the order in which torch numbers them."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            yield name, parameter, group["algorithm"]


def _copy(name: str, tensors: Mapping[str, Tensor], parameter: Tensor) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise ValueError(
            f"{name}: is missing from the optimizer's state; resume with the model and the optim "
            "section that the state was saved with"
        )
    if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
        raise ValueError(
            f"{name}: must be {parameter.dtype} of shape {tuple(parameter.shape)} as its "
            f"parameter, got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    return tensor.detach().to(parameter.device, copy=True)
