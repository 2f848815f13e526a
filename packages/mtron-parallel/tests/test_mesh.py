import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

import mtron_parallel
from mtron_parallel import AXES, Block, Mesh, ParallelConfig
from mtron_parallel.collectives import summed

CPU = torch.device("cpu")


@pytest.fixture
def as_rank():
    """Make this process a rank of a large job that nobody else is in."""

    def become(rank, world_size):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)

    yield become
    if dist.is_initialized():
        dist.destroy_process_group()


def test_one_process_has_size_one_on_every_axis():
    mesh = Mesh(CPU)
    assert {mesh.size(axis) for axis in (*AXES, "dp", "world")} == {1}
    assert {mesh.rank(axis) for axis in (*AXES, "dp", "world")} == {0}
    assert mesh.group("tp").handle is None


def test_unknown_axis_is_named():
    with pytest.raises(ValueError, match="no 'data'; use one of world, dp, pp"):
        Mesh(CPU).size("data")


def test_ranks_of_tensor_parallelism_are_neighbours(as_rank):
    # 4 data-parallel ranks of 3 tensor-parallel ranks each, on job ranks 2 to 13.
    as_rank(9, 16)
    mesh = Mesh.over(ParallelConfig(tp=3), "cpu", ranks=range(2, 14))
    assert mesh.config.dp == 4
    assert mesh.group("tp").ranks == (8, 9, 10)
    assert mesh.group("dp").ranks == mesh.group("dp_shard").ranks == (3, 6, 9, 12)
    assert mesh.group("world").ranks == tuple(range(2, 14))
    assert [mesh.rank(axis) for axis in ("tp", "dp", "world", "pp")] == [1, 2, 7, 0]
    assert [mesh.size(axis) for axis in AXES] == [1, 1, 4, 1, 3]
    # torch knows the same members and the same order of them.
    assert dist.get_process_group_ranks(mesh.group("tp").handle) == [8, 9, 10]
    assert mesh.group("dp").handle is mesh.group("dp_shard").handle


@pytest.mark.parametrize("rank", [0, 1, 4095])
def test_thousands_of_ranks(as_rank, rank):
    as_rank(rank, 4096)
    mesh = Mesh.over(ParallelConfig(tp=8), "cpu")
    first = rank // 8 * 8
    assert mesh.group("tp").ranks == tuple(range(first, first + 8))
    assert mesh.group("dp").ranks == tuple(range(rank % 8, 4096, 8))


def test_part_of_an_axis(as_rank):
    as_rank(6, 8)
    mesh = Mesh.over(ParallelConfig(tp=8), "cpu")
    assert mesh.part("tp", 2).ranks == (6, 7)
    assert mesh.part("tp", 4).ranks == (4, 5, 6, 7)
    assert mesh.part("tp", 4).rank == 2
    assert mesh.part("tp", 8) is mesh.group("tp")
    assert mesh.part("tp", 1).ranks == (6,)
    assert mesh.part("tp", 1).handle is None


def test_sizes_and_ranks_that_do_not_fit_are_refused(as_rank):
    as_rank(0, 6)
    with pytest.raises(ValueError, match=r"parallel\.tp: 4 does not divide the world size 6"):
        Mesh.over(ParallelConfig(tp=4), "cpu")
    with pytest.raises(ValueError, match=r"ranks: must be in ascending order, got \(2, 0\)"):
        Mesh.over(ParallelConfig(), "cpu", ranks=(2, 0))
    with pytest.raises(ValueError, match=r"ranks: rank 0 is not one of them, got \(1, 2\)"):
        Mesh.over(ParallelConfig(), "cpu", ranks=(1, 2))


def sums_over_overlapping_meshes():
    """Ranks that were in different numbers of meshes meet in one."""
    rank, found = dist.get_rank(), {}
    value = torch.tensor(float(2**rank))
    if rank < 3:
        mesh = Mesh.over(ParallelConfig(tp=3), "cpu", ranks=(0, 1, 2))
        found["tp of 0, 1, 2"] = summed(value, mesh.group("tp")).item()
    if rank in (1, 3):
        mesh = Mesh.over(ParallelConfig(), "cpu", ranks=(1, 3))
        found["dp of 1, 3"] = summed(value, mesh.group("dp")).item()
    mesh = Mesh.over(ParallelConfig(tp=2), "cpu")
    for axis in ("tp", "dp", "world"):
        found[axis] = summed(value, mesh.group(axis)).item()
    return found


def test_meshes_over_different_ranks_of_one_job(workers):
    assert workers.run(sums_over_overlapping_meshes, 4) == [
        {"tp of 0, 1, 2": 7.0, "tp": 3.0, "dp": 5.0, "world": 15.0},
        {"tp of 0, 1, 2": 7.0, "dp of 1, 3": 10.0, "tp": 3.0, "dp": 10.0, "world": 15.0},
        {"tp of 0, 1, 2": 7.0, "tp": 12.0, "dp": 5.0, "world": 15.0},
        {"dp of 1, 3": 10.0, "tp": 12.0, "dp": 10.0, "world": 15.0},
    ]


def test_block_slices_cut_the_rectangle():
    tensor = torch.arange(12).view(3, 4)
    assert torch.equal(tensor[Block((1, 2), (2, 2)).slices], torch.tensor([[6, 7], [10, 11]]))


def test_import_is_lazy_and_names_resolve():
    code = "import sys, mtron_parallel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert all(hasattr(mtron_parallel, name) for name in mtron_parallel.__all__)
