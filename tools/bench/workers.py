"""One process per contender, so that none changes the settings or the memory of another.

The processes take turns: only one works at a time.
"""

import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from contenders import CONTENDERS
from shapes import Shape

WARM_UP_STEPS = 3


class Worker:
    """A contender in its own process, warmed up.

    Attributes:
        warm_up_seconds: building, compiling and the first steps.
        loss: of the newest step.
    """

    def __init__(self, name: str, shape: Shape, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, name, shape, threads))
        self._process.start()
        child.close()
        self.loss = float("nan")
        (self.warm_up_seconds,) = self._receive()

    def run(self, steps: int) -> list[float]:
        """Take steps and return the seconds of each."""
        self._connection.send(steps)
        return self._receive()

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._connection.send(None)
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.terminate()

    def _receive(self) -> list[float]:
        answer = self._connection.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        seconds, self.loss = answer
        return seconds


def _serve(connection: Connection, name: str, shape: Shape, threads: int) -> None:
    try:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        started = time.perf_counter()
        step = CONTENDERS[name](shape)
        _, loss = _timed(step, WARM_UP_STEPS)
        connection.send(([time.perf_counter() - started], loss))
        while (steps := connection.recv()) is not None:
            connection.send(_timed(step, steps))
    except BaseException:
        connection.send(f"{name}:\n{traceback.format_exc()}")
        raise


def _timed(step: Callable[[], float], steps: int) -> tuple[list[float], float]:
    seconds, loss = [], float("nan")
    for _ in range(steps):
        started = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - started)
    return seconds, loss
