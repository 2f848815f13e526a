"""Buckets: parameters whose gradients are communicated at once."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from mtron_parallel.collectives import Group, Pending, all_reduce, reduce_scatter
from mtron_parallel.flat import FlatLayout


class Bucket(Protocol):
    """What `BucketedGradients` needs of a bucket."""

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """Of the module, in the order of the layout."""
        ...

    def clear(self) -> None:
        """Set the gradients to zero."""
        ...

    def collect(self, place: int) -> None:
        """Take the gradient that autograd has left in parameter number `place`."""
        ...

    def send(self) -> None:
        """Begin to communicate what was collected since the last time."""
        ...

    def finish(self) -> None:
        """Wait until the gradient is complete."""
        ...


def set_gradient_dtype(tensor: Tensor, dtype: torch.dtype) -> None:
    """Let autograd sum the gradients of `tensor` in `dtype`."""
    if tensor.grad_dtype != dtype:
        tensor.grad_dtype = dtype


class Views:
    """A flat buffer of which parts are the gradients of tensors.

    Attributes:
        flat: the buffer.

    Args:
        length: elements.
        dtype: of the gradients.
        device: of the buffer.
    """

    def __init__(self, length: int, dtype: torch.dtype, device: torch.device) -> None:
        self.flat = torch.zeros(length, dtype=dtype, device=device)
        self._parts: list[tuple[nn.Parameter, Tensor]] = []

    def add(self, tensor: nn.Parameter, start: int) -> None:
        """Let the gradient of `tensor` begin at element `start`."""
        part = self.flat[start : start + tensor.numel()].view(tensor.shape)
        self._parts.append((tensor, part))
        self._attach()

    def clear(self) -> None:
        """Set the gradients to zero, and attach them where somebody has detached them."""
        self.flat.zero_()
        self._attach()

    def _attach(self) -> None:
        """Autograd then adds to the parts in place, and optimizers read them."""
        for tensor, part in self._parts:
            if tensor.grad is not part:
                set_gradient_dtype(tensor, part.dtype)
                tensor.grad = part


class _WholeBucket:
    """Gradients that are whole on each rank until the last micro-batch.

    Args:
        parameters: of the module; their `.grad` becomes a part of a buffer.
        layout: of the buffer.
        group: data-parallel ranks.
        partial: ranks that computed parts of these gradients, too.
        dtype: in which gradients are summed.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        layout: FlatLayout,
        group: Group,
        partial: Group | None,
        dtype: torch.dtype,
    ) -> None:
        self.parameters = parameters
        self._group, self._partial = group, partial
        self._whole = Views(layout.size, dtype, parameters[0].device)
        for slot, parameter in zip(layout.slots, parameters, strict=True):
            self._whole.add(parameter, slot.start)
        self._pending: Pending | None = None

    def clear(self) -> None:
        """Set the gradients to zero."""
        self._whole.clear()

    def collect(self, place: int) -> None:
        """Nothing: autograd has added to the buffer."""

    def _complete(self, result: Tensor) -> None:
        """Wait for the sum over the data-parallel ranks, and sum over the others."""
        assert self._pending is not None, "finish follows send"
        self._pending.wait()
        self._pending = None
        if self._partial is not None:
            all_reduce(result, self._partial).wait()


class AllReduceBucket(_WholeBucket):
    """Gradients of which every data-parallel rank gets the sum (DDP)."""

    def send(self) -> None:
        """Begin the sum."""
        self._pending = all_reduce(self._whole.flat, self._group)

    def finish(self) -> None:
        """Wait for the sum."""
        self._complete(self._whole.flat)


class ReduceScatterBucket(_WholeBucket):
    """Gradients of whose sum every data-parallel rank gets a segment (ZeRO-1).

    Attributes:
        owned: that segment.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        layout: FlatLayout,
        group: Group,
        partial: Group | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(parameters, layout, group, partial, dtype)
        self.owned = Views(layout.segment, dtype, parameters[0].device)

    def clear(self) -> None:
        """Set the gradients to zero."""
        super().clear()
        self.owned.clear()

    def send(self) -> None:
        """Begin the sum."""
        self._pending = reduce_scatter(self.owned.flat, self._whole.flat, self._group)

    def finish(self) -> None:
        """Wait for this rank's segment of the sum."""
        self._complete(self.owned.flat)


class InFlight:
    """Sums under way for one model, each of which takes memory until it is used.

    Args:
        limit: most of them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._receive: deque[Callable[[], None]] = deque()

    def add(self, receive: Callable[[], None]) -> None:
        """Note that a sum is under way, `receive` waits for it and uses it; obey the limit."""
        self._receive.append(receive)
        while len(self._receive) > self._limit:
            self._receive.popleft()()

    def wait(self) -> None:
        """Wait for all."""
        while self._receive:
            self._receive.popleft()()


class ShardedBucket:
    """Gradients of which each rank ever keeps its segment only (ZeRO-2).

    A buffer for the whole bucket exists from a micro-batch's first gradient to the end of its sum.

    Attributes:
        owned: the segment.

    Args:
        parameters: of the module; they have no `.grad` outside of a backward.
        layout: of the buffer.
        group: data-parallel ranks.
        partial: ranks that computed parts of these gradients, too.
        dtype: in which gradients are summed.
        in_flight: shared by the buckets of a model.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        layout: FlatLayout,
        group: Group,
        partial: Group | None,
        dtype: torch.dtype,
        in_flight: InFlight,
    ) -> None:
        self.parameters = parameters
        self._layout, self._group, self._partial = layout, group, partial
        self._in_flight = in_flight
        self.owned = Views(layout.segment, dtype, parameters[0].device)
        self._buffer: Tensor | None = None
        for parameter in parameters:
            set_gradient_dtype(parameter, dtype)

    def clear(self) -> None:
        """Set the gradients to zero."""
        self.owned.clear()
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def collect(self, place: int) -> None:
        """Move a gradient into the buffer."""
        parameter, slot = self.parameters[place], self._layout.slots[place]
        assert parameter.grad is not None
        self._filled()[slot.start : slot.stop].view(parameter.shape).copy_(parameter.grad)
        parameter.grad = None

    def send(self) -> None:
        """Begin the sum of this micro-batch."""
        buffer, self._buffer = self._filled(), None
        part = torch.empty_like(self.owned.flat)
        pending = reduce_scatter(part, buffer, self._group)

        def receive() -> None:
            pending.wait()
            self.owned.flat.add_(part)

        self._in_flight.add(receive)

    def finish(self) -> None:
        """Wait for this rank's segment of the sum."""
        self._in_flight.wait()
        if self._partial is not None:
            all_reduce(self.owned.flat, self._partial).wait()

    def _filled(self) -> Tensor:
        """Return the buffer, zero where nothing was collected."""
        if self._buffer is None:
            self._buffer = self.owned.flat.new_zeros(self._layout.size)
        return self._buffer
