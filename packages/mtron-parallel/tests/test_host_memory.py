import gc
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mtron_parallel import CollectiveTimeout, Mesh, ParallelConfig, PeerLost, host_memory
from mtron_parallel.collectives import gathered, scattered_sum, summed

ODD = 2 * host_memory.SLOT_BYTES + 4 * 37
"""Bytes that take three exchanges, the last of them small."""


def count_open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def group_of_all(**fields):
    return Mesh.over(ParallelConfig(**fields), "cpu").group("world")


def exchange_large():
    """Tensors larger than a slot, of different sizes, many times in a row."""
    group = group_of_all()
    generator = torch.Generator().manual_seed(5)
    for count in (ODD // 4, 1, 0, ODD // 4, 3):
        everyone = torch.randint(-99, 99, (group.size, count), generator=generator).float()
        own = everyone[group.rank]
        assert torch.equal(summed(own, group), everyone.sum(0))
        assert torch.equal(gathered(own, group), everyone)
        parts = own.repeat(group.size, 1) * torch.arange(1, group.size + 1)[:, None]
        expected = everyone.sum(0) * (group.rank + 1)
        assert torch.equal(scattered_sum(parts, group), expected)
    return group.host is not None


def add_in_order():
    """In fp32 the order of these addends matters; every rank must get the bits of rank order."""
    group = group_of_all()
    addends = [1e8, 1.0, -1e8]
    own = torch.full((group.size,), addends[group.rank])
    return summed(own, group)[0].item(), scattered_sum(own[:, None], group).item()


def count_descriptors():
    """Open files before a mesh, with it, and after it."""
    found = []
    for _ in range(2):  # the first opens what torch keeps
        before = count_open_files()
        group = group_of_all()
        gathered(torch.ones(1), group)
        host = group.host
        with_host = count_open_files()
        host.close()
        after = count_open_files()
        found = [with_host > before, with_host - after]
        del host, group
        gc.collect()
    return found


def do_different_things():
    group = group_of_all(timeout_seconds=10)
    try:
        if group.rank == 0:
            summed(torch.ones(4), group)
        else:
            gathered(torch.ones(2), group)
    except RuntimeError as error:
        return str(error)
    return None


def leave_early():
    """Rank 1 closes its connections, as a process does that ends."""
    group = group_of_all(timeout_seconds=10)
    assert torch.equal(summed(torch.ones(1), group), torch.full((1,), 2.0))
    if group.rank == 1:
        group.host.close()
    dist.barrier()
    if group.rank == 1:
        return None
    try:
        summed(torch.ones(1), group)
    except PeerLost as error:
        return str(error)


def come_late():
    """Rank 1 is there at first, and then does not come in time."""
    group = group_of_all(timeout_seconds=0.3)
    found = None
    summed(torch.ones(1), group)
    if group.rank == 0:
        try:
            gathered(torch.ones(1), group)
        except CollectiveTimeout as error:
            found = str(error)
    dist.barrier()
    return found


def fail_to_connect(kind):
    """One rank cannot take part: all must agree on it, and still communicate."""
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        if dist.get_rank() == 1 and kind == "no sockets":
            patched.setattr(host_memory, "_listen", lambda size: None)
        if dist.get_rank() == 1 and kind == "other host":
            patched.setattr(host_memory, "_host", lambda: ("elsewhere", 1, 1))
        if dist.get_rank() == 1 and kind == "no memory":
            patched.setattr(host_memory.mmap, "mmap", _refuse)
        group = group_of_all()
        assert group.host is None
    return summed(torch.ones(2), group).tolist()


def _refuse(*arguments):
    raise OSError("no memory")


@pytest.mark.parametrize("size", [2, 3, 4])
def test_tensors_larger_than_a_slot_and_smaller_ones_in_turn(workers, size):
    assert workers.run(exchange_large, size) == [True] * size


def test_sums_are_taken_in_the_order_of_ranks(workers):
    in_order = float(torch.tensor(1e8) + torch.tensor(1.0) + torch.tensor(-1e8))
    assert workers.run(add_in_order, 3) == [(in_order, in_order)] * 3


def test_close_closes_the_socket_of_each_other_rank(workers):
    assert workers.run(count_descriptors, 3) == [[True, 2]] * 3


def test_ranks_that_do_different_things_are_told(workers):
    first, second = workers.run(do_different_things, 2)
    assert first == (
        "the ranks do not do the same: this one has 16 bytes to sum, rank 1 8 bytes to gather"
    )
    assert second == (
        "the ranks do not do the same: this one has 8 bytes to gather, rank 0 16 bytes to sum"
    )


def test_a_rank_that_has_ended_is_noticed(workers):
    lost, _ = workers.run(leave_early, 2)
    assert lost is not None
    assert lost.startswith("all_reduce over world: a rank of [0, 1] has ended")


def test_a_rank_that_does_not_come_is_waited_for_no_longer_than_allowed(workers):
    late, _ = workers.run(come_late, 2)
    assert late is not None
    assert late.startswith("all_gather over world (ranks 0, 1) was not joined by all within")


@pytest.mark.parametrize("kind", ["no sockets", "other host", "no memory"])
def test_where_one_rank_cannot_share_memory_all_use_gloo(workers, kind):
    assert workers.run(fail_to_connect, 2, kind) == [[2.0, 2.0]] * 2


def test_a_stranger_who_connects_is_turned_away(monkeypatch):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert host_memory._is_own(ours)
        monkeypatch.setattr(host_memory.os, "getuid", lambda: 12345)
        assert not host_memory._is_own(ours)
