from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from mtron_parallel import CollectiveTimeout, Mesh, ParallelConfig, PeerLost
from mtron_parallel.collectives import (
    Group,
    Pending,
    Traffic,
    all_gather,
    all_reduce,
    gathered,
    reduce_scatter,
    scattered_sum,
    summed,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64]


class Other(Group):
    """As on a backend other than gloo: torch's own reduce-scatter and all-gather are used."""

    is_gloo = False


class Apart(Group):
    """As on several hosts: there is no shared memory."""

    host = None


def values_of(rank, dtype, *shape):
    """Whole numbers of which every type holds the sums exactly."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randint(-60, 60, shape, generator=generator).to(dtype)


def compare_all():
    """Every collective against plain sums of what all ranks have; returns how many there were."""
    mesh = Mesh.over(ParallelConfig(), "cpu")
    gloo = mesh.group("world")
    assert gloo.host is not None
    fields = {name: getattr(gloo, name) for name in Group.__dataclass_fields__}
    groups = gloo, Other(**fields), Apart(**fields)
    return sum(compare(group, dtype) for group in groups for dtype in DTYPES)


def compare(group, dtype):
    size, rank = group.size, group.rank
    everyone = [values_of(other, dtype, size * 5) for other in range(size)]
    own, total = everyone[rank].clone(), torch.stack(everyone).sum(0, dtype=dtype)

    def check(found, expected):
        assert found.dtype == dtype
        assert torch.equal(found, expected)

    check(summed(own, group), total)
    assert torch.equal(own, everyone[rank])
    check(summed(own, group, maximum=True), torch.stack(everyone).amax(0))
    mixed = torch.stack((own, -own), dim=1)[:, 0]  # not contiguous
    check(summed(mixed, group), total)
    buffer = own.clone()
    all_reduce(buffer, group).wait()
    check(buffer, total)
    buffer = own.clone()
    all_reduce(buffer, group, maximum=True).wait()
    check(buffer, torch.stack(everyone).amax(0))
    part = own.new_empty(5)
    pending = reduce_scatter(part, own, group)
    pending.wait()
    pending.wait()
    check(part, total.view(size, 5)[rank])
    assert torch.equal(own, everyone[rank])
    buffer = torch.full_like(own, 77)
    buffer.view(size, 5)[rank] = own[:5]
    all_gather(buffer, group).wait()
    check(buffer, torch.cat([values[:5] for values in everyone]))
    turned = torch.stack(everyone).view(size, size, 5).mT
    check(gathered(own.view(size, 5).T, group), turned)
    check(scattered_sum(own.view(5, size).T, group), total.view(5, size)[:, rank])
    return 10


def count_bytes():
    """What is counted for tensors of 24 bytes, and how often."""
    mesh = Mesh.over(ParallelConfig(), "cpu")
    group, counted = mesh.group("world"), []

    def note():
        counted.append((mesh.traffic.bytes_sent.pop("world"), mesh.traffic.calls.pop("world")))

    values = torch.ones(6)
    all_reduce(values, group).wait()
    note()
    summed(values, group)
    note()
    reduce_scatter(torch.empty(6 // group.size), values, group).wait()
    note()
    all_gather(values, group).wait()
    note()
    gathered(values, group)
    note()
    scattered_sum(values.view(group.size, -1), group)
    note()
    return counted


def reduce_scatter_many():
    """Several sums under way at once, waited for in another order, and the order of the addends."""
    group = Mesh.over(ParallelConfig(), "cpu").group("world")
    found = [torch.empty(4) for _ in range(6)]
    pending = [
        reduce_scatter(found[i], torch.full((4 * group.size,), float(i + group.rank)), group)
        for i in range(6)
    ]
    for entry in reversed(pending):
        entry.wait()
    sums = [[float(values[0]), float(values[-1])] for values in found]
    addends = [1e8, 1.0, -1e8][: group.size]  # in float32 the order of these matters
    result = torch.empty(1)
    values = torch.full((group.size,), addends[group.rank])
    reduce_scatter(result, values, group).wait()
    return sums, result.item()


@pytest.mark.parametrize("size", [2, 3])
def test_each_equals_a_plain_sum_or_stack(workers, size):
    assert workers.run(compare_all, size) == [3 * len(DTYPES) * 10] * size


@pytest.mark.parametrize("size", [2, 3])
def test_bytes_are_counted_by_formula(workers, size):
    share = 24 * (size - 1) // size
    expected = [2 * share, 2 * share, share, share, 24 * (size - 1), share]
    assert workers.run(count_bytes, size) == [[(number, 1) for number in expected]] * size


def test_several_at_once_and_in_the_order_of_ranks(workers):
    expected = [[3.0 * i + 3] * 2 for i in range(6)]
    in_order = float(torch.tensor(1e8) + torch.tensor(1.0) + torch.tensor(-1e8))
    assert workers.run(reduce_scatter_many, 3) == [(expected, in_order)] * 3


class FakeWork:
    """A collective of torch that fails."""

    def __init__(self, text):
        self.text = text

    def wait(self):
        raise RuntimeError(self.text)


class Recorder:
    """An observer that notes what it is told."""

    def __init__(self):
        self.told: list[str] = []

    def entered(self, description):
        self.told.append(f"in {description}")

    def left(self):
        self.told.append("out")

    def explain(self, waited_seconds, ranks=None):
        return f"after {waited_seconds:g} s rank 1 of {ranks} is late"


ALONE = Group("tp", (3,), 0, None, 5.0, Traffic())
PAIR = replace(ALONE, ranks=(3, 4))


def test_a_timeout_names_the_collective_and_who_is_late():
    observer = Recorder()
    with pytest.raises(CollectiveTimeout) as error:
        group = replace(PAIR, observer=observer)
        Pending([FakeWork("Timed out waiting 5000ms")], group, "all_reduce").wait()
    assert str(error.value) == (
        "all_reduce over tp (ranks 3, 4) was not joined by all within parallel.timeout_seconds "
        "= 5; after 5 s rank 1 of (3, 4) is late"
    )
    assert observer.told == ["in all_reduce over tp"]  # this rank is not what others wait for


def test_a_lost_rank_and_other_errors_are_told_apart():
    with pytest.raises(PeerLost, match=r"all_gather over tp: a rank of \[3, 4\] has ended"):
        Pending([FakeWork("Connection closed by peer [127.0.0.1]:1234")], PAIR, "all_gather").wait()
    with pytest.raises(RuntimeError, match="no memory"):
        Pending([FakeWork("no memory")], PAIR, "all_gather").wait()


def test_the_observer_hears_of_a_collective_that_works():
    observer = Recorder()

    class Works(FakeWork):
        def wait(self):
            return None

    Pending([Works("")], replace(PAIR, observer=observer), "all_reduce").wait()
    assert observer.told == ["in all_reduce over tp", "out"]


def late(seconds):
    """Rank 1 does not take part in time; both kinds of messages."""
    mesh = Mesh.over(ParallelConfig(timeout_seconds=seconds), "cpu")
    group, found = mesh.group("world"), []
    if group.rank == 0:
        for collective in (summed, gathered):
            try:
                collective(torch.ones(3), group)
            except CollectiveTimeout as error:
                found.append(str(error).partition(" (")[0])
    dist.monitored_barrier(timeout=timedelta(seconds=20))
    return found


def test_a_rank_that_does_not_come_is_noticed(workers):
    first, second = workers.run(late, 2, 0.5)
    assert first == ["all_reduce over world", "all_gather over world"]
    assert second == []


def test_a_group_of_one_communicates_nothing():
    values = torch.ones(3)
    all_reduce(values, ALONE).wait()
    all_gather(values, ALONE).wait()
    part = torch.empty(3)
    reduce_scatter(part, values, ALONE).wait()
    assert torch.equal(part, values)
    assert summed(values, ALONE) is values
    assert ALONE.traffic == Traffic()
