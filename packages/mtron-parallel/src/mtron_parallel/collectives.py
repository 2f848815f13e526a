"""Communication between the ranks of a group: the one seam that every message goes through.

Here bytes are counted, waits that take too long are explained, and transports are chosen. What runs
beside the backward goes over torch's process groups; gloo's own reduce-scatter and all-gather took
2 to 6 times as long as the exchanges used in their place (2 and 4 ranks, 64 KiB to 16 MiB). What a
rank has to wait for at once goes through shared memory, if they share a host: see `host_memory`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from mtron_parallel import host_memory
from mtron_parallel.failures import Cause, cause_of
from mtron_parallel.watch import CollectiveTimeout, PeerLost


class Observer(Protocol):
    """Knows what the ranks of a job are doing. `Watch` is one."""

    def entered(self, description: str) -> None:
        """Note that this rank now waits in a collective."""
        ...

    def left(self) -> None:
        """Note that it waits no longer."""
        ...

    def explain(self, waited_seconds: float, ranks: tuple[int, ...] | None = None) -> str:
        """Say which ranks a collective waits for, and where these are."""
        ...


@dataclass
class Traffic:
    """What this rank has sent, counted by the formula of each collective.

    Collectives inside of compiled code do not count.

    Attributes:
        bytes_sent: by axis.
        calls: collectives by axis.
    """

    bytes_sent: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def add(self, axis: str, num_bytes: int) -> None:
        """Count one collective."""
        self.bytes_sent[axis] = self.bytes_sent.get(axis, 0) + num_bytes
        self.calls[axis] = self.calls.get(axis, 0) + 1


@dataclass(frozen=True, eq=False)
class Group:
    """Ranks that communicate with each other, as a value.

    Attributes:
        axis: name of the mesh axis, or of the part of one.
        ranks: their ranks in the job, in the group's order.
        rank: this process's position among them.
        handle: torch's process group; None where the process is alone.
        timeout_seconds: longest wait of a collective.
        traffic: counts what is sent.
        observer: explains long waits, if there is one.
    """

    axis: str
    ranks: tuple[int, ...]
    rank: int
    handle: dist.ProcessGroup | None
    timeout_seconds: float
    traffic: Traffic
    observer: Observer | None = None

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)

    @cached_property
    def is_gloo(self) -> bool:
        """Whether messages go over gloo."""
        return self.handle is not None and dist.get_backend(self.handle) == "gloo"

    @cached_property
    def host(self) -> host_memory.HostMemory | None:
        """Memory that all ranks share, if they are on one host's CPU; all ranks ask together.

        It is made when it is first asked for, and goes with the group.
        """
        if not self.is_gloo:
            return None

        def share(value: Any) -> list[Any]:
            found: list[Any] = [None] * self.size
            dist.all_gather_object(found, value, self.handle)
            return found

        return host_memory.connect(self.rank, self.size, share, self.timeout_seconds)

    @cached_property
    def sources(self) -> tuple[int, ...]:
        """Positions of the other ranks."""
        return tuple(rank for rank in range(self.size) if rank != self.rank)


class Pending:
    """A collective under way. `wait` must be called before its result is used.

    Args:
        works: of torch.
        group: in which it runs.
        name: of the collective, for messages.
        finish: what is left to do when the messages are there.
    """

    def __init__(
        self,
        works: list[dist.Work],
        group: Group,
        name: str,
        finish: Callable[[], object] | None = None,
    ) -> None:
        self._works, self._group, self._name, self._finish = works, group, name, finish

    def wait(self) -> None:
        """Wait for the result; on a GPU let the current stream wait. May be called again.

        Raises:
            CollectiveTimeout: it took longer than the group's limit; names the ranks that did
                not take part and where they are.
            PeerLost: a rank of the group has ended.
        """
        if self._works:
            with _explained(self._group, self._name):
                for work in self._works:
                    work.wait()
        self._works = []
        if self._finish is not None:
            self._finish()
            self._finish = None


@contextmanager
def _explained(group: Group, name: str) -> Iterator[None]:
    """Tell the observer where this rank is, and turn torch's errors into explained ones."""
    observer = group.observer
    what = f"{name} over {group.axis}"
    if observer is not None:
        observer.entered(what)
    try:
        yield
    except (RuntimeError, ConnectionError, TimeoutError) as error:
        cause = cause_of(error)
        if cause is Cause.TIMEOUT:
            seconds, ranks = group.timeout_seconds, ", ".join(map(str, group.ranks))
            where = "" if observer is None else f"; {observer.explain(seconds, group.ranks)}"
            raise CollectiveTimeout(
                f"{what} (ranks {ranks}) was not joined by all within "
                f"parallel.timeout_seconds = {seconds:g}{where}"
            ) from error
        if cause is Cause.LOST_PEER:
            raise PeerLost(f"{what}: a rank of {list(group.ranks)} has ended ({error})") from error
        raise
    if observer is not None:  # not after a failure: this rank is not what the others wait for
        observer.left()


def all_reduce(tensor: Tensor, group: Group, maximum: bool = False) -> Pending:
    """Sum `tensor` over the group, in place.

    Args:
        tensor: contiguous, equal in shape on all ranks.
        group: who takes part.
        maximum: take the largest instead of the sum.
    """
    if group.size == 1:
        return Pending([], group, "all_reduce")
    operation = dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM
    if torch.compiler.is_compiling():
        dist.all_reduce(tensor, operation, group.handle)
        return Pending([], group, "all_reduce")
    _count(group, 2 * tensor.nbytes)
    with _explained(group, "all_reduce"):
        work = dist.all_reduce(tensor, operation, group.handle, async_op=True)
    assert work is not None
    return Pending([work], group, "all_reduce")


def reduce_scatter(output: Tensor, values: Tensor, group: Group) -> Pending:
    """Sum `values` over the group and give each rank its segment of the sum.

    Args:
        output: `[n]`, gets segment `group.rank`; may not overlap `values`.
        values: `[group.size * n]`, contiguous; left as it is.
        group: who takes part.
    """
    if group.size == 1:
        output.copy_(values)
        return Pending([], group, "reduce_scatter")
    if torch.compiler.is_compiling():
        _reduce_scatter(output, values, group=group.handle)
        return Pending([], group, "reduce_scatter")
    _count(group, values.nbytes)
    with _explained(group, "reduce_scatter"):
        if group.is_gloo:
            parts = values.view(group.size, -1)
            rest = values.new_empty((group.size - 2, len(output)))
            received = [output, *rest]
            works = _exchange(parts, received, group)
            own = parts[group.rank]
            rows = [*received[: group.rank], own, *received[group.rank :]]
            return Pending(works, group, "reduce_scatter", lambda: _add_up(rows, output))
        work = _reduce_scatter(output, values, group=group.handle, async_op=True)
    assert work is not None
    return Pending([work], group, "reduce_scatter")


def all_gather(values: Tensor, group: Group) -> Pending:
    """Give every rank the segments of all others, in place.

    Args:
        values: `[group.size * n]`, contiguous; holds this rank's segment, number `group.rank`.
        group: who takes part.
    """
    if group.size == 1:
        return Pending([], group, "all_gather")
    own = values.view(group.size, -1)[group.rank]
    if torch.compiler.is_compiling():
        _all_gather(values, own.clone(), group=group.handle)
        return Pending([], group, "all_gather")
    _count(group, values.nbytes)
    with _explained(group, "all_gather"):
        if group.is_gloo:
            parts = values.view(group.size, -1)
            others = [parts[rank] for rank in group.sources]
            return Pending(_exchange([own] * group.size, others, group), group, "all_gather")
        work = _all_gather(values, own, group=group.handle, async_op=True)
    assert work is not None
    return Pending([work], group, "all_gather")


def summed(tensor: Tensor, group: Group, maximum: bool = False) -> Tensor:
    """Return the sum of `tensor` over the group, a new tensor; or the largest, by element."""
    if group.size == 1:
        return tensor
    if (host := _host(group, "all_reduce")) is not None:
        _count(group, 2 * tensor.nbytes)
        with _explained(group, "all_reduce"):
            return host.reduce(tensor, maximum)
    total = tensor.clone(memory_format=torch.contiguous_format)
    all_reduce(total, group, maximum).wait()
    return total


def gathered(tensor: Tensor, group: Group) -> Tensor:
    """Return `tensor` of all ranks, `[group.size, *tensor.shape]`."""
    if (host := _host(group, "all_gather")) is not None:
        _count(group, tensor.nbytes * group.size)
        with _explained(group, "all_gather"):
            return host.gather(tensor)
    result = tensor.new_empty((group.size, *tensor.shape))
    result[group.rank] = tensor
    all_gather(result.view(-1), group).wait()
    return result


def scattered_sum(parts: Tensor, group: Group) -> Tensor:
    """Return the sum over the group of part `group.rank` of `parts`, `[group.size, ...]`."""
    if (host := _host(group, "reduce_scatter")) is not None:
        _count(group, parts.nbytes)
        with _explained(group, "reduce_scatter"):
            return host.scatter_sum(parts)
    result = parts.new_empty(parts.shape[1:])
    reduce_scatter(result.view(-1), parts.contiguous().view(-1), group).wait()
    return result


def _host(group: Group, name: str) -> host_memory.HostMemory | None:
    """Return the group's shared memory, if collective `name` may go through it."""
    if group.size == 1 or torch.compiler.is_compiling():
        return None
    with _explained(group, name):  # the first time all ranks have to come
        return group.host


def _exchange(
    outgoing: Sequence[Tensor] | Tensor, received: Sequence[Tensor], group: Group
) -> list[dist.Work]:
    """Exchange messages with every other rank.

    Args:
        outgoing: element r goes to rank r of the group.
        received: gets what the others have sent, in the order of `group.sources`.
        group: who takes part.
    """
    works = [
        dist.irecv(tensor, group.ranks[source], group.handle)
        for source, tensor in zip(group.sources, received, strict=True)
    ]
    for distance in range(1, group.size):
        target = (group.rank + distance) % group.size
        works.append(dist.isend(outgoing[target], group.ranks[target], group.handle))
    return [work for work in works if work is not None]


def _add_up(rows: Sequence[Tensor], output: Tensor) -> None:
    """Add the ranks' parts in the order of the ranks, so that every run has the same bits.

    Args:
        rows: by rank; `output` is the first of them, or the second after this rank's own.
        output: gets the sum.
    """
    for row in rows:
        if row is not output:
            output += row


def _count(group: Group, num_bytes: int) -> None:
    """Count a message that sends all but this rank's part of `num_bytes`."""
    group.traffic.add(group.axis, num_bytes * (group.size - 1) // group.size)


# torch 2.13 has renamed these two and warns about the old names.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
