"""From the gradients of one process's micro-batches to those of the global batch.

`LocalGradients` is for a process that shares no data-parallel axis with others, `BucketedGradients`
for those that do. Both also sum the gradients of parameters that every rank of a smaller group
holds but uses for a part of the work only: norms in the sequence region, shared key-value heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import ref

import torch
from torch import Tensor, nn

from mtron_parallel.buckets import Bucket, set_gradient_dtype
from mtron_parallel.collectives import Group, all_reduce


@dataclass(frozen=True)
class Trained:
    """A parameter as the gradient synchronization sees it.

    Attributes:
        name: global name.
        parameter: the local one, which the module uses.
        partial: ranks over which its gradient is to be summed besides the data-parallel ones,
            because each computes a part of it; None for most.
    """

    name: str
    parameter: nn.Parameter
    partial: Group | None


class Gradients(Protocol):
    """Collects gradients over the micro-batches of a step."""

    def begin(self) -> None:
        """Begin a step: all gradients are zero."""
        ...

    def micro_batch(self, last: bool) -> None:
        """Begin a micro-batch; its backward follows."""
        ...

    def end_micro_batch(self) -> None:
        """End a micro-batch."""
        ...

    def finish(self) -> None:
        """End a step: the shards have the gradient of the global batch."""
        ...


def accumulation_dtype(parameter: Tensor) -> torch.dtype:
    """Return the type in which gradients are summed: fp32, or fp64 for fp64 weights."""
    return torch.promote_types(parameter.dtype, torch.float32)


class LocalGradients:
    """Gradients that are the parameters' own."""

    def __init__(self, trained: Sequence[Trained]) -> None:
        self._parameters = [entry.parameter for entry in trained]
        self._partial: dict[Group, list[nn.Parameter]] = {}
        for entry in trained:
            set_gradient_dtype(entry.parameter, accumulation_dtype(entry.parameter))
            if entry.partial is not None:
                self._partial.setdefault(entry.partial, []).append(entry.parameter)

    def begin(self) -> None:
        """Forget the last step's gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def micro_batch(self, last: bool) -> None:
        """Nothing: autograd adds up."""

    def end_micro_batch(self) -> None:
        """Nothing."""

    @torch.no_grad()
    def finish(self) -> None:
        """Sum what several ranks have computed parts of. What no backward has reached is zero."""
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, dtype=accumulation_dtype(parameter))
        for group, parameters in self._partial.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            all_reduce(flat, group).wait()
            parts = flat.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


class BucketedGradients:
    """Gradients that are communicated in buckets while the backward goes on.

    A bucket goes out when each of its parameters has reported, and after the buckets before it,
    so that all ranks send in the same order. A parameter that a backward does not reach never
    reports; what is left goes out at the end.

    Args:
        buckets: in the order in which the backward is expected to fill them.
        every_micro_batch: whether buckets go out in each micro-batch, or in the last one only.
        overlap: whether they go out during the backward or after it.
    """

    def __init__(self, buckets: Sequence[Bucket], every_micro_batch: bool, overlap: bool) -> None:
        self._buckets = list(buckets)
        self._every_micro_batch = every_micro_batch
        self._overlap = overlap
        self._sending = False
        self._next = 0
        self._missing: list[int] = []
        for number, bucket in enumerate(self._buckets):
            for place, parameter in enumerate(bucket.parameters):
                hook = _reporting(ref(self), number, place)
                parameter.register_post_accumulate_grad_hook(hook)

    def begin(self) -> None:
        """Set all gradients to zero."""
        for bucket in self._buckets:
            bucket.clear()

    def micro_batch(self, last: bool) -> None:
        """Begin to count reports if buckets go out in this micro-batch."""
        self._sending = last or self._every_micro_batch
        self._missing = [len(bucket.parameters) for bucket in self._buckets]
        self._next = 0

    def end_micro_batch(self) -> None:
        """Send what has not been sent."""
        if self._sending:
            for bucket in self._buckets[self._next :]:
                bucket.send()
            self._next = len(self._buckets)
            self._sending = False

    def finish(self) -> None:
        """Wait for everything that was sent."""
        for bucket in self._buckets:
            bucket.finish()

    def _report(self, number: int, place: int) -> None:
        """Note that parameter `place` of bucket `number` has its gradient."""
        self._buckets[number].collect(place)
        if not self._sending:
            return
        self._missing[number] -= 1
        assert self._missing[number] >= 0, "a parameter reported twice in one micro-batch"
        while self._overlap and self._next < len(self._buckets) and not self._missing[self._next]:
            self._buckets[self._next].send()
            self._next += 1


def _reporting(
    owner: "ref[BucketedGradients]", number: int, place: int
) -> Callable[[Tensor], None]:
    """Return a hook that does not keep `owner` alive: Python cannot free cycles through hooks."""

    def report(parameter: Tensor) -> None:
        gradients = owner()
        if gradients is not None:
            gradients._report(number, place)

    return report
