"""Every layout trains as plain PyTorch does in one process."""

import pytest
import torch
from parallel_tiny import (
    Case,
    Tiny,
    assemble,
    gradient_error,
    initial_values,
    train,
    train_many,
    train_plainly,
)

SHORT = {"steps": 3, "num_micro_batches": 2}
UNTIED = Case(model={"tied": False}, **SHORT)
LOGITS = Case(model={"head_loss": False}, **SHORT)
FP32 = Case(dtype=torch.float32, optimizer="sgd")
SPLIT = {"tp": 2, "sequence_parallel": True}

SINGLE = {"one process": (Case(), None)}
TWO = {
    "tp": (Case(num_micro_batches=2), {"tp": 2}),
    "tp, untied": (UNTIED, {"tp": 2}),
    "tp, logits": (LOGITS, {"tp": 2}),
    "tp, a rank without tokens": (Case({"vocabulary": 5}, **SHORT), {"tp": 2}),
    "sequence": (Case(num_micro_batches=2), SPLIT),
    "sequence, untied": (UNTIED, SPLIT),
    "sequence, logits": (LOGITS, SPLIT),
    "sequence of 3": (Case(seq=3, **SHORT), SPLIT),
    "sequence, no context": (Case(with_context=False, **SHORT), SPLIT),
    "DDP": (Case(), {"dp": 2}),
    "DDP, small buckets": (Case(), {"dp": 2, "bucket_bytes": 4000}),
    "DDP, no overlap": (Case(), {"dp": 2, "bucket_bytes": 4000, "overlap": False}),
    "ZeRO-1": (Case(), {"dp": 2, "zero": 1}),
    "ZeRO-1, small buckets": (Case(), {"dp": 2, "zero": 1, "bucket_bytes": 4000}),
    "ZeRO-1, no overlap": (Case(), {"dp": 2, "zero": 1, "overlap": False}),
    "ZeRO-1, one micro-batch": (Case(num_micro_batches=2), {"dp": 2, "zero": 1}),
    "ZeRO-2": (Case(), {"dp": 2, "zero": 2}),
    "ZeRO-2, small buckets": (Case(), {"dp": 2, "zero": 2, "bucket_bytes": 1}),
    "ZeRO-2, no overlap": (Case(), {"dp": 2, "zero": 2, "bucket_bytes": 4000, "overlap": False}),
}
FOUR = {
    "tp, keys on two ranks": (Case(**SHORT), {"tp": 4}),
    "sequence, keys on two ranks": (UNTIED, {"tp": 4, "sequence_parallel": True}),
    "sequence x ZeRO-2, one key head": (
        Case({"kv_heads": 1}, **SHORT),
        {**SPLIT, "dp": 2, "zero": 2, "bucket_bytes": 4000},
    ),
    "ZeRO-1 over four": (Case(), {"dp": 4, "zero": 1}),
    "ZeRO-2 over four": (Case(num_micro_batches=8), {"dp": 4, "zero": 2, "bucket_bytes": 4000}),
    "tp x DDP": (Case(**SHORT), {"tp": 2, "dp": 2}),
    "tp x ZeRO-1": (Case(num_micro_batches=2), {"tp": 2, "dp": 2, "zero": 1}),
    "tp x ZeRO-2": (Case(steps=3), {"tp": 2, "dp": 2, "zero": 2, "bucket_bytes": 4000}),
    "sequence x DDP": (Case(**SHORT), {**SPLIT, "dp": 2}),
    "sequence x ZeRO-1": (Case(**SHORT), {**SPLIT, "dp": 2, "zero": 1, "bucket_bytes": 4000}),
    "sequence x ZeRO-2": (Case(num_micro_batches=2), {**SPLIT, "dp": 2, "zero": 2}),
    "fp32, tp x DDP": (FP32, {"tp": 2, "dp": 2}),
    "fp32, sequence x ZeRO-2": (FP32, {**SPLIT, "dp": 2, "zero": 2}),
}
NAMES = [(1, name) for name in SINGLE] + [(2, name) for name in TWO] + [(4, name) for name in FOUR]


@pytest.fixture(scope="module")
def runs(workers):
    """What each rank of each case saw."""
    found = {}
    for world_size, cases in ((2, TWO), (4, FOUR)):
        ranks = workers.run(train_many, world_size, list(cases.values()), timeout_seconds=120)
        found |= {
            (world_size, name): [rank[index] for rank in ranks] for index, name in enumerate(cases)
        }
    return found | {(1, name): [train(*arguments)] for name, arguments in SINGLE.items()}


@pytest.fixture(scope="module")
def plain():
    """What plain PyTorch does, once for each case."""
    known = {}

    def of(case, dp):
        key = (str(case), dp)
        if key not in known:
            known[key] = train_plainly(case, dp)
        return known[key]

    return of


@pytest.mark.parametrize(("world_size", "name"), NAMES, ids=[f"{n}: {name}" for n, name in NAMES])
def test_layout_equals_plain_pytorch(runs, plain, tolerances, world_size, name):
    case, config = {**SINGLE, **TWO, **FOUR}[name]
    ranks = runs[world_size, name]
    losses, norms, gradients, weights, evaluation = plain(case, (config or {}).get("dp", 1))
    exact = case.dtype == torch.float64
    for rank in ranks:
        loss = tolerances.FP64_LOSS if exact else tolerances.FP32
        assert rank.losses == pytest.approx(losses, rel=0, abs=loss)
        assert rank.norms == pytest.approx(norms, rel=loss)
        assert rank.evaluation == pytest.approx([evaluation], rel=0, abs=loss)
    shapes = {name: tuple(p.shape) for name, p in Tiny(**case.model).named_parameters()}
    initial = assemble([rank.initial for rank in ranks], shapes)
    assert initial.keys() == shapes.keys()
    for parameter, values in initial.items():
        assert torch.equal(values, initial_values(parameter, shapes[parameter], case.dtype))
    found = assemble([rank.gradients for rank in ranks], shapes)
    limit = tolerances.FP64_GRADIENT if exact else tolerances.FP32
    assert gradient_error(found, gradients) < limit
    found = assemble([rank.weights for rank in ranks], shapes)
    limit = tolerances.FP64_WEIGHTS if exact else tolerances.FP32
    assert max(float((found[n] - w).abs().max()) for n, w in weights.items()) < limit
