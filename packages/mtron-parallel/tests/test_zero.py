"""When data-parallel ranks communicate, and what they keep. That they agree: test_parity.py."""

import gc
import time
import weakref

import pytest
import torch
import torch.distributed as dist
from parallel_tiny import (
    Case,
    Training,
    build,
    mesh_of,
    micro_batch,
    micro_batches,
    parallel_model,
    plain_model,
)

from mtron_parallel.buckets import ShardedBucket

BF16 = Case(dtype=torch.bfloat16)
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


def buckets_that_exist(config, in_flight):
    """For each micro-batch, as its forward begins: how many buffers of whole buckets exist, and
    how many parameters of the module have a gradient; then the most buffers that ever existed.
    """
    mesh = mesh_of(config)
    model = parallel_model(Case(), mesh)
    buffers, most, between = [], [], []

    def alive(expected):
        """How many there are; more than expected only if gloo's threads do not let go of them."""
        deadline = time.monotonic() + 1
        while (number := sum(b() is not None for b in buffers)) > expected:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        return number

    class Noted(ShardedBucket):
        def _filled(self):
            is_new, buffer = self._buffer is None, super()._filled()
            if is_new:
                buffers.append(weakref.ref(buffer))
                most.append(alive(in_flight + 1))
            return buffer

    for bucket in model._gradients._buckets:
        bucket.__class__ = Noted

    def look(module, arguments):
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        between.append((alive(in_flight), len(gradients)))

    model.module.embed.register_forward_pre_hook(look)
    model.forward_backward(micro_batches(Case(num_micro_batches=8), 0, mesh))
    return between, max(most), alive(0), len(model._gradients._buckets)


@pytest.mark.parametrize("overlap", [True, False])
def test_zero_2_keeps_no_whole_gradient(workers, overlap):
    in_flight = 1 if overlap else 0
    config = {**SMALL, "zero": 2, "overlap": overlap}
    found = workers.run(buckets_that_exist, 2, config, in_flight)
    for between, most, at_the_end, buckets in found:
        assert len(between) == 4
        assert all(exist <= in_flight and gradients == 0 for exist, gradients in between)
        assert at_the_end == 0
        # The gradient of a bias comes before that of its weight, which may be in the next bucket.
        assert most <= in_flight + 2 < buckets


def bf16_gradients(config):
    """The gradients of a step in bfloat16, by name, and their types."""
    mesh = mesh_of(config)
    model = parallel_model(BF16, mesh)
    model.forward_backward(micro_batches(BF16, 0, mesh))
    return [
        (shard.name, block, values.clone(), shard.tensor.dtype)
        for shard in model.shards()
        if shard.tensor.grad is not None
        for block, values in shard.blocks_of(shard.tensor.grad)
    ]


@pytest.mark.parametrize("zero", [0, 1, 2, None])
def test_bf16_gradients_are_summed_in_fp32(workers, tolerances, zero):
    """They are the sum of what each micro-batch alone gives, converted before it is added."""
    model = plain_model(BF16)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    expected = {name: torch.zeros(parameter.shape) for name, parameter in trained.items()}
    batches = [micro_batch(0, slice(first, first + 2)) for first in range(0, 8, 2)]
    count = sum(batch.loss_mask.sum() for batch in batches)
    for batch in batches:
        for parameter in trained.values():
            parameter.grad, parameter.grad_dtype = None, torch.float32
        weights = batch.loss_mask / count
        model.train_loss(batch.inputs, batch.labels, weights, batch.context).backward()
        for name, parameter in trained.items():
            if parameter.grad is not None:
                expected[name] += parameter.grad
    largest = max(gradient.norm() for gradient in expected.values())
    if zero is None:
        ranks = [bf16_gradients(None)]
    else:
        ranks = workers.run(bf16_gradients, 2, {**SMALL, "zero": zero})
    for name, block, values, dtype in (entry for rank in ranks for entry in rank):
        assert (dtype, values.dtype) == (torch.bfloat16, torch.float32)
        error = (values - expected[name][block.slices]).norm()
        assert error <= tolerances.BF16_ACCUMULATION * max(expected[name].norm(), 0.01 * largest)


class Late:
    """Weights on their way, which arrive when they are waited for."""

    def __init__(self, flat):
        self.flat = flat

    def wait(self):
        self.flat.fill_(-1)


def fill_twice(config):
    """Fill while the weights of the last step are on their way; whether that replaced all."""
    training = Training(Case(), mesh_of(config))
    training.step(0)
    model = training.model
    model.wait()
    for flat in model._weights:
        flat._pending = Late(flat.flat)
    model.fill(lambda name, block: torch.full(block.shape, 0.5))
    model.wait()
    return [bool((p == 0.5).all()) for p in model.module.parameters()]


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_filling_again_replaces_everything(workers, zero):
    for found in workers.run(fill_twice, 2, {**SMALL, "zero": zero}):
        assert all(found)


def copies_agree(config):
    """After some steps: this rank's copies of all weights."""
    training = Training(Case(steps=2), mesh_of(config))
    for step in range(2):
        training.step(step)
    training.model.wait()
    return [parameter.detach().clone() for parameter in training.model.module.parameters()]


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_every_rank_ends_with_the_same_bits(workers, zero):
    first, second = workers.run(copies_agree, 2, {**SMALL, "zero": zero})
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def shards_of_all(config):
    """Names, shapes and placements of what a rank updates."""
    model = parallel_model(Case(), mesh_of(config))
    flat = {shard.name: shard for shard in model.shards()}
    return (
        {name: (tuple(s.tensor.shape), s.placement, s.is_whole) for name, s in flat.items()},
        model.placements(),
        dist.get_rank(),
    )


def test_what_is_divided_and_what_is_not(workers):
    names = [name for name, _ in build(Case()).named_parameters()]
    for shards, placements, rank in workers.run(shards_of_all, 2, {"dp": 2, "zero": 1}):
        assert list(placements) == names
        assert [name for name in names if name in shards] == list(shards)
        for name, (shape, placement, is_whole) in shards.items():
            assert placements[name] == placement
            assert is_whole == (placement.blocks[0].shape == placement.global_shape)
            if is_whole:  # a whole tensor has its own shape, also of three dims or none
                assert shape == placement.global_shape
            elif len(placement.global_shape) > 1:
                assert shape[1:] == placement.global_shape[-1:]
        assert all(not placements[name].blocks for name in names if name not in shards)
        # Nobody updates what is frozen: all have it, and the first speaks for it.
        assert shards["shift"][1].replica == rank


def zero_gradient():
    """What nothing uses has a gradient of zero; what is frozen has none."""
    found = {}
    for zero in (0, 1, 2, None):
        config = None if zero is None else {"dp": 2, "zero": zero}
        mesh = mesh_of(config)
        model = parallel_model(Case(), mesh)
        model.forward_backward(micro_batches(Case(), 0, mesh))
        for shard in model.shards():
            if shard.name in ("unused", "shift"):
                gradient = shard.tensor.grad
                found[zero, shard.name] = (
                    gradient if gradient is None else gradient.abs().sum().item()
                )
    return found


def test_unused_and_frozen_parameters(workers):
    ranks = workers.run(zero_gradient, 2)
    for zero in (0, 1, 2, None):
        assert {rank.get((zero, "unused"), 0.0) for rank in ranks} == {0.0}
        assert {rank[zero, "shift"] for rank in ranks} == {None}


def is_freed(config):
    """Whether a model and what it communicates with are gone once nobody has them."""
    training = Training(Case(steps=1), mesh_of(config))
    training.step(0)
    kept = [weakref.ref(training.model._gradients), weakref.ref(training.mesh.group("dp"))]
    kept += [weakref.ref(parameter) for parameter in training.model.module.parameters()]
    del training
    gc.collect()
    return [reference() is None for reference in kept]


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_model_is_freed(workers, zero):
    for freed in workers.run(is_freed, 2, {**SMALL, "zero": zero}):
        assert all(freed)
