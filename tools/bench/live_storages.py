"""Which tensor storages live when: every byte that this process's operators hand out."""

import sys
import weakref
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass(frozen=True)
class Peak:
    """Most bytes that lived at once.

    Attributes:
        state: what lasts, and what was allocated on its behalf.
        others: activations, and temporary tensors of autograd and of the optimizer.
        together: of both; at most their sum, because they may peak at different times.
    """

    state: int
    others: int
    together: int


@dataclass(frozen=True)
class _Storage:
    number: int
    size: int
    is_state: bool


class LiveStorages(TorchDispatchMode):
    """Follows every storage from the operator that returns it until it is freed.

    Use it as a context manager around everything, from the building of the model on. What an
    operator allocates for itself and frees before it returns is not seen.

    Args:
        state_modules: names of modules; what they allocate counts as state, however short-lived.
    """

    def __init__(self, state_modules: Collection[str]) -> None:
        super().__init__()
        self._state_modules = frozenset(state_modules)
        self._live: dict[int, _Storage] = {}  # by the id of the storage
        self._before: list[_Storage] = []
        self._events: list[tuple[int, _Storage]] = []  # +1: came, -1: went
        self._count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor) and value.device.type != "meta":
                self._see(value.untyped_storage())
        return result

    def start(self) -> None:
        """Begin the period of which `peak` speaks."""
        self._before = list(self._live.values())
        self._events = []

    def peak(self) -> Peak:
        """Return the peaks since `start`. What lives now counts as state for all its life."""
        lasting = {storage.number for storage in self._live.values()}

        def is_state(storage: _Storage) -> bool:
            return storage.is_state or storage.number in lasting

        now = {kind: sum(s.size for s in self._before if is_state(s) == kind) for kind in (0, 1)}
        most, together = dict(now), sum(now.values())
        for sign, storage in self._events:
            now[is_state(storage)] += sign * storage.size
            most = {kind: max(most[kind], now[kind]) for kind in now}
            together = max(together, sum(now.values()))
        return Peak(state=most[1], others=most[0], together=together)

    def _see(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._live:
            return
        entry = _Storage(self._count, storage.nbytes(), self._is_called_for_state())
        self._count += 1
        self._live[id(storage)] = entry
        self._events.append((1, entry))
        weakref.finalize(storage, self._forget, id(storage)).atexit = False

    def _forget(self, identity: int) -> None:
        self._events.append((-1, self._live.pop(identity)))

    def _is_called_for_state(self) -> bool:
        frame = sys._getframe()
        while frame is not None:
            if frame.f_globals.get("__name__") in self._state_modules:
                return True
            frame = frame.f_back
        return False
