import subprocess
import sys

import pytest
import torch

import mtron_parallel
from mtron_parallel import AXES, Block, Mesh


def test_one_process_has_size_one_on_every_axis():
    mesh = Mesh.from_environment({}, "cpu")
    assert mesh.device == torch.device("cpu")
    assert {mesh.size(axis) for axis in AXES} == {1}
    assert {mesh.rank(axis) for axis in AXES} == {0}


def test_two_meshes_are_two_values():
    assert Mesh(torch.device("cpu")) == Mesh(torch.device("cpu")) != Mesh(torch.device("meta"))


def test_several_processes_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"WORLD_SIZE: .* got 4; start it without torchrun"):
        Mesh.from_environment({"WORLD_SIZE": "4"})


def test_unknown_axis_and_device_are_named():
    with pytest.raises(ValueError, match="'data'; use one of pp"):
        Mesh.from_environment({}, "cpu").size("data")
    with pytest.raises(ValueError, match="'warp' is no torch device"):
        Mesh.from_environment({}, "warp")


def test_block_slices_cut_the_rectangle():
    tensor = torch.arange(12).view(3, 4)
    assert torch.equal(tensor[Block((1, 2), (2, 2)).slices], torch.tensor([[6, 7], [10, 11]]))


def test_import_is_lazy_and_names_resolve():
    code = "import sys, mtron_parallel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert all(hasattr(mtron_parallel, name) for name in mtron_parallel.__all__)
