"""Runs in workers: save on one layout, load on another, go on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from layouts import Parts, job_here

from mtron_optim import export_state
from mtron_train import Run, assemble, config_from_mapping, snapshot, train_step


@dataclass(frozen=True)
class Continued:
    """What one rank saw of a run that it resumed.

    Attributes:
        loaded: weights and optimizer state right after loading, by array name.
        step: at which it resumed.
        losses: of the steps after it.
        final: weights and optimizer state at the end.
    """

    loaded: Parts
    step: int
    losses: list[float]
    final: Parts


def save_after(data: dict[str, Any], steps: int) -> list[float]:
    """Train from the newest checkpoint or from the start, save, and return the losses."""
    run = _assemble(data)
    losses = _steps(run, steps)
    run.checkpoints.save(*snapshot(run.state, run.config)).wait()
    run.checkpoints.close()
    return losses


def resume(data: dict[str, Any], directories: list[str], steps: int) -> list[Continued]:
    """Load the newest checkpoint of each directory in turn and go on from there, without saving."""
    found = []
    for directory in directories:
        run = _assemble({**data, "run": {**data["run"], "directory": directory}})
        assert run.resumed is not None
        loaded, step = state_of(run), run.state.step
        losses = _steps(run, steps)
        found.append(Continued(loaded, step, losses, state_of(run)))
    return found


def state_of(run: Run) -> Parts:
    """Copy what a rank holds of weights and optimizer state."""
    shards = {shard.name: shard for shard in run.state.model.shards()}
    tensors = {f"param/{name}": shard.tensor.detach() for name, shard in shards.items()}
    tensors |= export_state(run.state.optimizer)[0]
    return {
        name: [
            (block.offset, view.numpy().copy())
            for block, view in shards[name.partition("/")[2]].blocks_of(tensor)
        ]
        for name, tensor in tensors.items()
    }


def _assemble(data: dict[str, Any]) -> Run:
    job = job_here()
    return assemble(config_from_mapping(data, world_size=job.world_size), job)


def _steps(run: Run, count: int) -> list[float]:
    with run.state.loader:
        return [train_step(run.state, run.config).loss for _ in range(count)]


def same_bits(parts: Parts, arrays: dict[str, np.ndarray]) -> list[str]:
    """Return the arrays of which a rank holds other bits than `arrays` has."""
    different = []
    for name, blocks in parts.items():
        for offset, values in blocks:
            place = tuple(slice(o, o + n) for o, n in zip(offset, values.shape, strict=True))
            if arrays[name][place].tobytes() != values.tobytes():
                different.append(name)
    return different
