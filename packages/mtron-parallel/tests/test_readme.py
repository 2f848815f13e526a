"""The script of the README gives the same losses on any number of processes."""

import os
import re
import socket
from pathlib import Path

import pytest
import torch.distributed as dist

README = Path(__file__).parents[1] / "README.md"
ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def script():
    """The block that is to be saved as `train.py`."""
    text = README.read_text("utf-8")
    (code,) = re.findall(r"Save this as `train\.py`.*?```python\n(.*?)```", text, re.DOTALL)
    return code


def losses_of(code):
    namespace = {}
    exec(compile(code, "train.py", "exec"), namespace)
    return namespace["losses"]


def run_as_rank(code):
    """Run the script in the environment that a launcher makes."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = [listening.getsockname()[1]]
    dist.broadcast_object_list(port, src=0)
    dist.destroy_process_group()
    values = (rank, rank, world_size, "127.0.0.1", port[0])
    os.environ.update(zip(ENVIRONMENT, map(str, values), strict=True))
    try:
        return losses_of(code)
    finally:
        for name in ENVIRONMENT:
            del os.environ[name]


def test_losses_do_not_depend_on_the_processes(workers, tolerances):
    alone = losses_of(script())
    assert alone[-1] < alone[0]
    for world_size in (2, 4):
        for losses in workers.run(run_as_rank, world_size, script()):
            assert losses == pytest.approx(alone, rel=0, abs=tolerances.FP32)
