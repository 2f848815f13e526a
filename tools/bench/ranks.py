"""Processes that work as the ranks of one job, one thread each, and are told what to do.

Contenders that are compared live in the same processes and take turns, so that they share the
cores, the allocator and whatever else the machine does.
"""

import datetime
import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import median
from typing import Any, Self

TIMEOUT_SECONDS = 300.0
WARM_UP_ROUNDS = 2
PRELOADED = ["torch", "torch.distributed", "torch.distributed.tensor.parallel"]


class Ranks:
    """A job of gloo processes. Use it as a context manager.

    Args:
        size: number of processes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory(prefix="mtron-bench-")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        meeting_place = str(Path(self._folder.name) / "store")
        self._connections: list[Any] = []
        self._processes = []
        for rank in range(size):
            connection, child = context.Pipe()
            process = context.Process(target=_serve, args=(child, rank, size, meeting_place))
            process.start()
            child.close()
            self._connections.append(connection)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call a function of a module on all ranks and return what each has returned.

        Raises:
            RuntimeError: a rank has raised or ended, or takes longer than five minutes.
        """
        for connection in self._connections:
            connection.send((function, arguments))
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(answers) < self.size:
            missing = {self._connections[r]: r for r in range(self.size) if r not in answers}
            ready = wait(list(missing), max(0.0, deadline - time.monotonic()))
            if not ready:
                ranks = ", ".join(map(str, missing.values()))
                raise RuntimeError(f"{function.__name__}: no answer from ranks {ranks}")
            answers |= {missing[c]: _receive(c, missing[c]) for c in missing if c in ready}
        return [answers[rank] for rank in range(self.size)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for connection in self._connections:
            connection.close()  # which ends a rank, unless it hangs
        for process in self._processes:
            process.join(timeout=0 if error[0] else 10)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()


def _receive(connection: Connection, rank: int) -> Any:
    try:
        failed, answer = connection.recv()
    except EOFError:
        raise RuntimeError(f"rank {rank} has ended") from None
    if failed:
        raise RuntimeError(f"rank {rank}:\n{answer}")
    return answer


def _serve(connection: Connection, rank: int, size: int, meeting_place: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting_place}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=TIMEOUT_SECONDS),
    )
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            break
        try:
            answer = False, function(*arguments)
        except Exception:
            answer = True, traceback.format_exc()
        connection.send(answer)
    dist.destroy_process_group()


def take_turns(turns: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Let contenders work one after the other, in rounds; every rank calls this.

    Args:
        turns: what each does in its turn, by name.
        rounds: how many count; there are two more to warm up.

    Returns:
        For each contender the seconds of the slowest rank, by round.
    """
    import torch
    import torch.distributed as dist

    names = list(turns)
    seconds = torch.zeros(len(names), WARM_UP_ROUNDS + rounds, dtype=torch.float64)
    for number in range(WARM_UP_ROUNDS + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            dist.barrier()
            started = time.perf_counter()
            turns[name]()
            seconds[names.index(name), number] = time.perf_counter() - started
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return dict(zip(names, seconds[:, WARM_UP_ROUNDS:].tolist(), strict=True))


def times_as_fast(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return how many times as fast as `theirs`, by the median over paired rounds."""
    return median(their / our for our, their in zip(ours, theirs, strict=True))
