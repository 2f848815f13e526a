"""Two models on two meshes in the same processes know nothing of each other."""

import pytest
import torch.distributed as dist
from parallel_tiny import Case, Tiny, Training, assemble, gradient_error, train_plainly

from mtron_parallel import Mesh, ParallelConfig

FIRST = Case(steps=3, num_micro_batches=2)
SECOND = Case(model={"tied": False, "kv_heads": 4}, steps=3, num_micro_batches=2)
EVERYBODY = (0, 1, 2, 3)
SAME = (
    ({"tp": 4}, EVERYBODY),
    ({"tp": 2, "dp": 2, "zero": 2, "sequence_parallel": True}, EVERYBODY),
)
OVERLAPPING = (
    ({"tp": 2, "sequence_parallel": True}, (1, 3)),
    ({"dp": 2, "zero": 1}, (0, 1)),
)


def alternate(layouts):
    """Train the two in turns, each rank those that it takes part in; returns these by number."""
    running = {
        number: Training(case, Mesh.over(ParallelConfig(**config), "cpu", ranks))
        for number, (case, (config, ranks)) in enumerate(zip((FIRST, SECOND), layouts, strict=True))
        if dist.get_rank() in ranks
    }
    for step in range(3):
        for training in running.values():
            training.step(step)
    return {number: training.end() for number, training in running.items()}


@pytest.mark.parametrize("layouts", [SAME, OVERLAPPING], ids=["same ranks", "one rank in both"])
def test_both_equal_plain_pytorch(workers, tolerances, layouts):
    ranks = workers.run(alternate, 4, layouts)
    for number, (case, (_, members)) in enumerate(zip((FIRST, SECOND), layouts, strict=True)):
        assert [rank for rank in EVERYBODY if number in ranks[rank]] == list(members)
        runs = [ranks[rank][number] for rank in members]
        losses, _, gradients, weights, _ = train_plainly(case)
        shapes = {name: tuple(p.shape) for name, p in Tiny(**case.model).named_parameters()}
        for run in runs:
            assert run.losses == pytest.approx(losses, rel=0, abs=tolerances.FP64_LOSS)
        found = assemble([run.gradients for run in runs], shapes)
        assert gradient_error(found, gradients) < tolerances.FP64_GRADIENT
        found = assemble([run.weights for run in runs], shapes)
        for name, values in weights.items():
            assert float((found[name] - values).abs().max()) < tolerances.FP64_WEIGHTS
