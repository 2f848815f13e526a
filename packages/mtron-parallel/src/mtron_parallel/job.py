"""The processes of a job: started once, used by any number of meshes, ended together."""

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from mtron_parallel.config import ParallelConfig
from mtron_parallel.mesh import Mesh
from mtron_parallel.watch import Watch


@dataclass
class Job:
    """One process of a job. Make it with `Job.start`, and use it as a context manager.

    Attributes:
        rank: of this process in the job.
        world_size: processes in the job.
        device: where this process computes.
        watch: knows where the processes are; None where there is one process.
    """

    rank: int
    world_size: int
    device: torch.device
    watch: Watch | None

    @classmethod
    def start(
        cls, environment: Mapping[str, str], device: str = "auto", timeout_seconds: float = 600.0
    ) -> "Job":
        """Join the job that the launcher's environment variables describe.

        Args:
            environment: usually `os.environ`; `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`
                and `MASTER_PORT` as torchrun and `launch` set them. Without them the job is this
                process.
            device: `auto` (CUDA if there is one, else CPU), or a torch device such as `cpu`. With
                several processes on a machine `cuda` is the one of the process's local rank.
            timeout_seconds: longest wait for the other processes.

        Raises:
            ValueError: a variable is missing or wrong, or the device does not exist here.
        """
        world_size = _number(environment, "WORLD_SIZE", 1)
        if world_size == 1:
            return cls(0, 1, resolve_device(device), None)
        rank = _number(environment, "RANK")
        place = resolve_device(device, _number(environment, "LOCAL_RANK"))
        backend = "gloo" if place.type == "cpu" else "cpu:gloo,cuda:nccl"
        if place.type == "cuda":
            torch.cuda.set_device(place)
        limit = datetime.timedelta(seconds=timeout_seconds)
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=limit)
        watch = Watch(dist.distributed_c10d._get_default_store(), rank, world_size)
        watch.start()
        return cls(rank, world_size, place, watch)

    def mesh(self, config: ParallelConfig) -> Mesh:
        """Arrange all processes in a grid; every process calls this.

        Raises:
            ValueError: the sizes do not fit the number of processes.
        """
        if self.world_size == 1:
            return Mesh(self.device, config.resolve(1))
        return Mesh.over(config, self.device, observer=self.watch)

    def from_first(self, value: Any) -> Any:
        """Return what process 0 has given; every process calls this.

        Args:
            value: of process 0, JSON-able; others' are ignored.
        """
        if self.world_size == 1:
            return value
        text = [json.dumps(value) if self.rank == 0 else ""]
        dist.broadcast_object_list(text, src=0, device=torch.device("cpu"))
        return json.loads(text[0])

    def any(self, flag: bool) -> bool:
        """Return whether `flag` holds on any process; every process calls this."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value)

    def close(self) -> None:
        """Leave the job."""
        if self.watch is not None:
            self.watch.stop()
            self.watch = None
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device that a name means for a process.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:N` or another of torch.
        local_rank: number of the process on this machine.

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: {name!r} is no torch device; use auto, cpu or cuda") from None
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ValueError(f"device: {name!r} was asked for, but torch finds no GPU; use cpu or auto")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"device: process {local_rank} of this machine needs GPU {index}, but torch finds "
            f"{torch.cuda.device_count()}; start fewer processes (--nproc), or use cpu"
        )
    return torch.device("cuda", index)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise ValueError(
            f"{name}: must be a number in the environment of every process, got {text!r}; "
            "start the job with --nproc or torchrun"
        )
    return int(text)
