"""Run a function on several ranks, for tests: a pool of gloo processes that is kept."""

import inspect
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mtron_parallel.failures import Cause, describe_code
from mtron_parallel.pool_server import PoolServer
from mtron_parallel.pool_worker import Task, decode, encode

_PATIENCE_SECONDS = 1.0
"""How long the others may take to fail as well."""


class WorkersFailed(AssertionError):  # noqa: N818 - what a test that fails this way says
    """Ranks failed, died or did not come to an end; the text has a part for each, cause first."""


@dataclass(frozen=True)
class _Worker:
    pid: int
    connection: Connection

    def send(self, data: bytes) -> None:
        """Send a message; its death, if that makes it impossible, is noticed elsewhere."""
        with suppress(ConnectionError):
            self.connection.send_bytes(data)


@dataclass(frozen=True)
class _Failure:
    """What is known of a rank that did not return.

    Attributes:
        order: sorts the ranks, the cause first.
        text: for the developer.
    """

    order: tuple[float, ...]
    text: str


class WorkerPool:
    """Processes on this machine that run functions as the ranks of a gloo process group.

    They are forked, as many as are asked for, from a server that has imported torch, and are used
    again, since both importing and forking take long. After a failure they are replaced. They
    compute with one thread, take warnings as errors, and print to where the first run printed.

    Make one for the whole session, as a context manager or with `close`:

        @pytest.fixture(scope="session")
        def workers():
            with WorkerPool() as pool:
                yield pool

    Args:
        max_workers: at most so many processes.
        preload: names of modules that take long to import and that most functions need.
    """

    def __init__(self, max_workers: int = 8, preload: Sequence[str] = ()) -> None:
        self._max_workers = max_workers
        self._preload = preload
        self._server: PoolServer | None = None
        self._workers: list[_Worker] = []

    def run(
        self,
        function: Callable[..., Any],
        world_size: int,
        *args: Any,
        timeout_seconds: float = 60.0,
        **kwargs: Any,
    ) -> list[Any]:
        """Run a function on `world_size` ranks and return the results by rank.

        It finds the default process group of torch.distributed started, the default generator
        seeded, and whatever earlier runs have left in the modules of its process.

        Args:
            function: of a module or class, not of another function. It is found by its file, which
                is imported in the workers as it is: without pytest's rewriting of `assert`.
            world_size: number of ranks.
            args: of the function, the same for all ranks.
            timeout_seconds: when a rank has not returned by then, all are killed, and the stack of
                each is shown.
            kwargs: of the function.

        Raises:
            WorkersFailed: a rank raised an exception, died or did not return.
            ValueError: the function cannot be found by name, or there are too few workers.
        """
        __tracebackhide__ = True  # pytest shows the caller
        file, module, name = _name(function)
        if not 1 <= world_size <= self._max_workers:
            raise ValueError(
                f"world_size: the pool runs 1 to {self._max_workers} ranks, got {world_size}; "
                "make it with more max_workers"
            )
        arguments = encode((args, kwargs))
        server, workers = self._take(world_size)
        store = server.new_file()
        run = _Run(server, workers)
        try:
            for rank, worker in enumerate(workers):
                task = Task(file, module, name, rank, world_size, store)
                worker.send(json.dumps(asdict(task)).encode())
                worker.send(arguments)
            results = run.results(timeout_seconds)
            for worker in workers:
                worker.send(b"end")
        except BaseException:
            self._discard(workers)
            raise
        return results

    def close(self) -> None:
        """End all processes. The pool starts again when it is used again."""
        for worker in self._workers:
            worker.connection.close()
        self._workers = []
        if self._server is not None:
            self._server.close()
            self._server = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self, count: int) -> tuple[PoolServer, list[_Worker]]:
        """Return the server and as many living workers, starting what is missing."""
        if self._server is None:
            self._server = PoolServer(self._preload)
        dead = [worker for worker in self._workers if self._server.poll(worker.pid) is not None]
        self._forget(dead)
        while len(self._workers) < count:
            self._workers.append(_Worker(*self._server.fork()))
        return self._server, self._workers[:count]

    def _discard(self, workers: Sequence[_Worker]) -> None:
        """Kill workers, whatever they do."""
        assert self._server is not None
        self._forget(workers)
        self._server.kill([worker.pid for worker in workers])

    def _forget(self, workers: Sequence[_Worker]) -> None:
        for worker in workers:
            worker.connection.close()
            self._workers.remove(worker)


class _Run:
    """One function on its way through the workers."""

    def __init__(self, server: PoolServer, workers: Sequence[_Worker]) -> None:
        self._server = server
        self._workers = workers
        self._results: dict[int, Any] = {}
        self._failures: dict[int, _Failure] = {}

    def results(self, timeout_seconds: float) -> list[Any]:
        """Wait for the results of all ranks.

        Raises:
            WorkersFailed: there are not all.
        """
        __tracebackhide__ = True
        limit = time.monotonic() + timeout_seconds
        hurry = False
        while self._pending() and (left := limit - time.monotonic()) > 0:
            self._wait(left)
            if self._failures and not hurry:
                hurry = True
                limit = min(limit, time.monotonic() + _PATIENCE_SECONDS)
        if self._failures:
            raise WorkersFailed(self._describe_failures())
        if self._pending():
            raise WorkersFailed(self._describe_hang(timeout_seconds))
        return [self._results[rank] for rank in range(len(self._workers))]

    def _pending(self) -> list[int]:
        known = self._results.keys() | self._failures.keys()
        return [rank for rank in range(len(self._workers)) if rank not in known]

    def _wait(self, seconds: float) -> None:
        """Wait for a message of a worker or the death of one, and note what it means."""
        connections = {self._workers[rank].connection: rank for rank in self._pending()}
        for ready in wait([*connections, self._server.control], seconds):
            if isinstance(ready, Connection):
                self._read(connections[ready])
        for rank in self._pending():
            code = self._server.poll(self._workers[rank].pid)
            if code is not None:
                self._note_death(rank, code)

    def _read(self, rank: int) -> None:
        worker = self._workers[rank]
        try:
            message = json.loads(worker.connection.recv_bytes())
            if message["kind"] == "done":
                self._results[rank] = decode(worker.connection.recv_bytes())
        except (EOFError, ConnectionError):
            self._note_death(rank, self._server.status(worker.pid))
            return
        if message["kind"] == "failed":
            self._failures[rank] = _Failure(tuple(message["order"]), message["text"])

    def _note_death(self, rank: int, code: int) -> None:
        order = (-Cause.OWN, time.monotonic())
        self._failures[rank] = _Failure(order, f"The process {describe_code(code)}.\n")

    def _describe_failures(self) -> str:
        """Return every failure, the cause first; equal ones once."""
        ranks_of: dict[str, list[int]] = {}
        for rank, failure in sorted(self._failures.items(), key=lambda item: item[1].order):
            ranks_of.setdefault(failure.text, []).append(rank)
        parts = [f"{self._label(ranks)}:\n{text}" for text, ranks in ranks_of.items()]
        if pending := self._pending():
            parts.append(f"{self._label(pending)}: did not return either, and was ended.\n")
        return "\n".join(parts)

    def _describe_hang(self, timeout_seconds: float) -> str:
        """Return the stack of every rank that runs."""
        stacks = self._server.stacks([self._workers[rank].pid for rank in self._pending()])
        parts = [f"no end after {timeout_seconds:g} s\n"]
        for rank, stack in zip(self._pending(), stacks, strict=True):
            parts.append(f"{self._label([rank])} is here:\n{stack or 'it does not say'}\n")
        if self._results:
            parts.append(f"{self._label(sorted(self._results))}: returned.\n")
        return "\n".join(parts)

    def _label(self, ranks: Sequence[int]) -> str:
        name = "rank" if len(ranks) == 1 else "ranks"
        return f"{name} {', '.join(map(str, ranks))} of {len(self._workers)}"


def _name(function: Callable[..., Any]) -> tuple[str, str, str]:
    """Return the file, module and qualified name by which a worker finds a function."""
    module, name = function.__module__, function.__qualname__
    file = inspect.getsourcefile(inspect.unwrap(function))
    if file is None or "<" in name:
        raise ValueError(
            f"function: a worker must find it by name in a file, got {name}; "
            "define it with def at the top of a module"
        )
    return str(Path(file).resolve()), "__workers__" if module == "__main__" else module, name
