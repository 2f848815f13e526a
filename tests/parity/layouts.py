"""The layouts that are proven equal to one process, and what each rank reports of a run."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mtron_parallel import Job
from mtron_train import assemble, config_from_mapping, global_batch, train_step


@dataclass(frozen=True)
class Layout:
    """A layout by name."""

    name: str
    world_size: int
    parallel: dict[str, Any]


ONE = Layout("one", 1, {})
TENSOR = {"tp2": {"tp": 2}, "tp2-sp": {"tp": 2, "sequence_parallel": True}}
DATA = {"ddp": {"zero": 0}, "zero1": {"zero": 1}, "zero2": {"zero": 2}}
LAYOUTS = [
    *(Layout(name, 2, tensor) for name, tensor in TENSOR.items()),
    *(Layout(f"dp2-{name}", 2, data) for name, data in DATA.items()),
    *(
        Layout(f"{t}-dp2-{d}", 4, {**tensor, **data})
        for t, tensor in TENSOR.items()
        for d, data in DATA.items()
    ),
]

Parts = dict[str, list[tuple[tuple[int, ...], np.ndarray]]]
"""Of each parameter the blocks that a rank holds: offset and values."""


@dataclass(frozen=True)
class Report:
    """What one rank saw of a run.

    Attributes:
        losses: of every step.
        norms: of the gradient, of every step.
        initial: weights before the first step.
        gradients: of the first step, before clipping.
        weights: after `len(losses)` steps or after those asked for.
        shapes: of the parameters in the whole model.
    """

    losses: list[float]
    norms: list[float]
    initial: Parts
    gradients: Parts
    weights: Parts
    shapes: dict[str, tuple[int, ...]]


def job_here() -> Job:
    """The process group that the test's pool has started, or this process alone."""
    if not torch.distributed.is_initialized():
        return Job(0, 1, torch.device("cpu"), None)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return Job(rank, world_size, torch.device("cpu"), None)


def train_steps(data: dict[str, Any], steps: int, weights_after: int) -> Report:
    """Assemble a run and take some of its steps."""
    job = job_here()
    run = assemble(config_from_mapping(data, world_size=job.world_size), job)
    model = run.state.model
    initial, gradients, weights = parts(model), {}, {}
    take_norm = model.grad_norm

    def grad_norm() -> torch.Tensor:
        if run.state.step == 0:
            gradients.update(parts(model, gradient=True))
        return take_norm()

    model.grad_norm = grad_norm
    results = []
    with run.state.loader:
        for _ in range(steps):
            results.append(train_step(run.state, run.config))
            if run.state.step == weights_after:
                weights = parts(model)
    shapes = {name: place.global_shape for name, place in model.placements().items()}
    losses, norms = [r.loss for r in results], [r.grad_norm for r in results]
    return Report(losses, norms, initial, gradients, weights, shapes)


def descend(data: dict[str, Any], steps: int) -> Report:
    """Take steps of plain gradient descent, in which rounding does not grow as in AdamW."""
    job = job_here()
    run = assemble(config_from_mapping(data, world_size=job.world_size), job)
    model, losses, gradients = run.state.model, [], {}
    initial = parts(model)
    with run.state.loader as loader:
        for step in range(steps):
            batches = global_batch(loader, run.config, step, model.mesh.device)
            losses.append(model.forward_backward(batches).loss)
            gradients = gradients or parts(model, gradient=True)
            with torch.no_grad():
                for shard in model.shards():
                    shard.tensor.sub_(shard.tensor.grad, alpha=0.1)
            model.publish()
    shapes = {name: place.global_shape for name, place in model.placements().items()}
    return Report(losses, [], initial, gradients, parts(model), shapes)


def parts(model: Any, gradient: bool = False) -> Parts:
    """Copy what a rank holds of weights or gradients."""
    found: Parts = {}
    for shard in model.shards():
        tensor = shard.tensor.grad if gradient else shard.tensor.detach()
        blocks = [(b.offset, view.numpy().copy()) for b, view in shard.blocks_of(tensor)]
        found[shard.name] = blocks
    return found


def whole(reports: list[Report], which: str) -> dict[str, np.ndarray]:
    """Put the ranks' parts together; replicas must be bitwise equal, nothing may be missing."""
    result = {}
    for name, shape in reports[0].shapes.items():
        array, seen = None, np.zeros(shape, bool)
        for report in reports:
            for offset, values in getattr(report, which).get(name, []):
                if array is None:
                    array = np.zeros(shape, values.dtype)
                place = tuple(slice(o, o + n) for o, n in zip(offset, values.shape, strict=True))
                again = seen[place]
                assert np.array_equal(array[place][again], values[again]), (
                    f"{which} of {name}: replicas differ"
                )
                array[place], seen[place] = values, True
        assert array is not None, f"{which} of {name}: no rank has it"
        assert seen.all(), f"{which} of {name}: {seen.size - seen.sum()} elements on no rank"
        result[name] = array
    return result


def largest_gradient_error(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The worst difference, each over the larger of the tensor's norm and 0.01 of the largest.

    The floor is for gradients that are truly 0, as a key bias's.
    """
    floor = 0.01 * max(float(np.linalg.norm(value)) for value in expected.values())
    return max(
        float(np.linalg.norm(found[name] - value)) / max(float(np.linalg.norm(value)), floor)
        for name, value in expected.items()
    )


def largest_difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest difference of two elements."""
    return max(float(np.abs(found[name] - value).max()) for name, value in expected.items())
