"""What a worker of a `WorkerPool` does: run functions as a rank of a process group."""

import faulthandler
import importlib.util
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate
from multiprocessing.connection import Connection
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from mtron_parallel.failures import cause_of

STACK_SIGNAL = signal.SIGUSR1
"""Makes a worker write the stacks of its threads, whatever it does."""


@dataclass(frozen=True)
class Task:
    """Which function to run, and as which rank.

    Attributes:
        file: that defines the function.
        module: the name under which the asking process knows that file.
        name: of the function in its module; with dots inside classes.
        rank: of this worker.
        world_size: number of ranks.
        store: file through which the ranks find each other, the same for all and for no other run.
    """

    file: str
    module: str
    name: str
    rank: int
    world_size: int
    store: str


def encode(value: Any) -> bytes:
    """Return any value as bytes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def decode(data: bytes) -> Any:
    """Return the value that `encode` got; only for bytes of one's own processes."""
    return torch.load(io.BytesIO(data), weights_only=False)


def stack_file(folder: Path, pid: int) -> Path:
    """Return where a worker writes its stacks."""
    return folder / f"stack-{pid}.txt"


def work(connection: Connection, folder: Path) -> None:
    """Run one task after the other, until the pool is gone."""
    with stack_file(folder, os.getpid()).open("w") as stacks:
        faulthandler.register(STACK_SIGNAL, stacks, all_threads=True)
        warnings.simplefilter("error")
        while True:
            try:
                task = Task(**json.loads(connection.recv_bytes()))
                arguments = connection.recv_bytes()
            except EOFError:
                return
            _run(connection, task, arguments)


def _run(connection: Connection, task: Task, arguments: bytes) -> None:
    """Run a task and send what comes out of it."""
    torch.manual_seed(0)
    try:
        function = _find(task)
        args, kwargs = decode(arguments)
        store = _join(task)
        result = encode(function(*args, **kwargs))
    except BaseException as error:
        # Above the function are only frames of this module.
        below = error.__traceback__ and error.__traceback__.tb_next
        text = "".join(traceback.format_exception(error.with_traceback(below)))
        _send(connection, kind="failed", text=text, order=[-cause_of(error), time.monotonic()])
        return
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    _send(connection, kind="done")
    connection.send_bytes(result)
    connection.recv_bytes()  # all others are done as well
    if dist.is_initialized():
        _leave()
    del store


def _find(task: Task) -> Callable[..., Any]:
    """Import the module of a task, unless that has been done, and return the function."""
    module = sys.modules.get(task.module) or _load(task.module, task.file)
    return attrgetter(task.name)(module)


def _load(name: str, file: str) -> ModuleType:
    """Execute a file as the module `name`, which need not be importable by that name.

    Modules beside the file can be imported from it. The packages that the name implies are made,
    because its classes cannot be sent without.
    """
    for parent in accumulate(name.split(".")[:-1], "{}.{}".format):
        try:
            import_module(parent)
        except ImportError:
            sys.modules[parent] = ModuleType(parent)
    folder = str(Path(file).parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _join(task: Task) -> dist.Store:
    """Start the default process group.

    Over a file: torch's TCP store looks up the name of every peer, which takes seconds where the
    name service answers slowly.
    """
    store = dist.FileStore(task.store, task.world_size)
    dist.init_process_group("gloo", store=store, rank=task.rank, world_size=task.world_size)
    return store


def _leave() -> None:
    """End the process groups.

    gloo takes 10 ms to close each connection, mostly asleep: a thread does it beside the next run.
    """
    groups = [dist.group.WORLD]
    dist.destroy_process_group()
    threading.Thread(target=groups.clear, daemon=True).start()


def _send(connection: Connection, **message: Any) -> None:
    connection.send_bytes(json.dumps(message).encode())
