"""Weights that data-parallel ranks update in parts, and how the next forward waits for them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from mtron_parallel.collectives import Group, Pending, all_gather
from mtron_parallel.flat import FlatLayout


class Weights:
    """The weights of a bucket in one flat buffer, of which this rank updates a segment.

    Attributes:
        parameters: of the module; their values have moved into the buffer.
        flat: the buffer.
        segment: the part of it that this rank updates.

    Args:
        parameters: in the order of the layout.
        layout: of the buffer.
        group: data-parallel ranks.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], layout: FlatLayout, group: Group
    ) -> None:
        first = parameters[0]
        self.parameters = parameters
        self._group = group
        self._pending: Pending | None = None
        self.flat = torch.zeros(layout.size, dtype=first.dtype, device=first.device)
        for slot, parameter in zip(layout.slots, parameters, strict=True):
            values = parameter.data
            parameter.data = self.flat[slot.start : slot.stop].view(values.shape)
            parameter.data.copy_(values)
        self.segment = self.flat.view(layout.ranks, -1)[group.rank]

    def publish(self) -> None:
        """Begin to give every rank the segments that the others have updated."""
        self._pending = all_gather(self.flat, self._group)

    def wait(self) -> None:
        """Wait for what `publish` has begun, if anything."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.wait()


def wait_before_use(model: nn.Module, weights: Iterable[Weights]) -> list[Weights]:
    """Let every block of the model wait for its weights before its forward.

    A block is a child of the model, or of a list, dict or sequence of modules in it. It waits for
    the weights of all modules inside, because these may use each other's without a call, as
    `nn.MultiheadAttention` does. A loss `head_loss` waits for those of the head.

    Args:
        model: its `train_loss` calls the blocks.
        weights: all of it.

    Returns:
        What no block waits for: it is needed before `train_loss`.
    """
    owner = {id(parameter): flat for flat in weights for parameter in flat.parameters}

    def owners(parameters: Iterable[nn.Parameter]) -> list[Weights]:
        return list(dict.fromkeys(owner[id(p)] for p in parameters if id(p) in owner))

    early: list[nn.Parameter] = []
    for block, parameters in _blocks(model):
        if block is None:
            early += parameters
        else:
            _wait_in(block, owners(parameters))
    head, loss = getattr(model, "head", None), getattr(model, "head_loss", None)
    if isinstance(head, nn.Module) and isinstance(loss, nn.Module):
        _wait_in(loss, owners(head.parameters()))
    return owners(early)


def _blocks(module: nn.Module) -> Iterator[tuple[nn.Module | None, list[nn.Parameter]]]:
    """Yield the blocks inside `module` and their parameters; None with what is in no block."""
    yield None, list(module.parameters(recurse=False))
    for child in module.children():
        is_called = type(child).forward is not nn.Module.forward
        if is_called and not isinstance(child, nn.Sequential):
            yield child, list(child.parameters())
        else:
            yield from _blocks(child)


def _wait_in(block: nn.Module, weights: Sequence[Weights]) -> None:
    if weights:
        block.register_forward_pre_hook(_waiting(weights), prepend=True)


def _waiting(weights: Sequence[Weights]) -> Callable[[nn.Module, Any], None]:
    def wait(module: nn.Module, arguments: Any) -> None:
        if not torch.compiler.is_compiling():
            for flat in weights:
                flat.wait()

    return wait
