"""When data-parallel ranks communicate, and what they keep. That they agree: test_parity.py."""

import weakref

import pytest
import torch
import torch.distributed as dist
from parallel_tiny import (
    LAYOUT,
    Case,
    Training,
    build,
    initial_values,
    mesh_of,
    micro_batch,
    micro_batches,
    parallel_model,
)

from mtron_parallel import parallelize
from mtron_parallel.buckets import ShardedBucket

SMALL = {"dp": 2, "bucket_bytes": 1}
"""A bucket per few parameters."""


def count_calls(config, num_micro_batches):
    """Collectives over dp of a step, of publishing, and how many buckets there are."""
    mesh = mesh_of(config)
    case = Case(num_micro_batches=num_micro_batches, steps=1)
    training = Training(case, mesh)
    training.step(0)
    in_step = training.run.calls[0]["dp"]
    after = mesh.traffic.calls["dp"] - in_step
    return in_step, after, len(training.model._gradients._buckets)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("num_micro_batches", [2, 8])
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_gradients_are_communicated_once_or_for_each_micro_batch(
    workers, zero, num_micro_batches, overlap
):
    config = {**SMALL, "zero": zero, "overlap": overlap}
    times = num_micro_batches // 2 if zero == 2 else 1
    for in_step, after, buckets in workers.run(count_calls, 2, config, num_micro_batches):
        assert buckets > 3
        assert in_step == 2 + times * buckets  # the count of tokens, the loss, the gradients
        assert after == (buckets if zero else 0)  # the weights


def sent_before_the_end(config):
    """How many buckets have gone out when the backward reaches the embedding, and all."""
    mesh = mesh_of(config)
    model = parallel_model(Case(), mesh)
    seen = []

    def look(module, arguments, output):
        before = mesh.traffic.calls["dp"]
        output.register_hook(lambda gradient: seen.append(mesh.traffic.calls["dp"] - before))

    model.module.embed.register_forward_hook(look)
    model.forward_backward(micro_batches(Case(num_micro_batches=4), 0, mesh))
    return seen, len(model._gradients._buckets)


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_buckets_go_out_during_the_backward(workers, zero):
    for seen, buckets in workers.run(sent_before_the_end, 2, {**SMALL, "zero": zero}):
        first, second = seen
        assert buckets / 2 < second < buckets
        assert first == (second if zero == 2 else 0)


@pytest.mark.parametrize("zero", [0, 1])
def test_without_overlap_they_go_out_after_it(workers, zero):
    config = {**SMALL, "zero": zero, "overlap": False}
    for seen, _ in workers.run(sent_before_the_end, 2, config):
        assert seen == [0, 0]


def keep_of_gradients(config):
    """For each micro-batch after the first, as its forward begins: buckets of gradients that
    exist, and gradients of the module's parameters; and the most buckets that ever existed."""
    mesh = mesh_of(config)
    model = parallel_model(Case(), mesh)
    alive, most = weakref.WeakSet(), 0
    filled = ShardedBucket._filled

    def note(bucket):
        nonlocal most
        buffer = filled(bucket)
        alive.add(Identity(buffer))
        buffer.mtron_test_owner = next(iter(alive)) if len(alive) == 1 else None
        return buffer

    class Identity:
        def __init__(self, buffer):
            self.buffer = weakref.ref(buffer)

    raise NotImplementedError
