"""The process from which the workers of a `WorkerPool` are forked, and how to speak with it.

It has imported torch once and has one thread. It ends, and kills its workers, when the pool does.
"""

import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

import torch

from mtron_parallel.pool_worker import STACK_SIGNAL, stack_file, work

# What, which process, with which wait status.
_MESSAGE = struct.Struct("<cii")
_FORK, _KILL, _FORKED, _DIED = b"F", b"K", b"f", b"d"
_END_SECONDS = 5.0
_STACK_SECONDS = 1.0
_BOOTSTRAP = """
import importlib, json, sys
settings = json.loads(sys.argv[1])
sys.path[:] = settings["path"]
for name in settings["preload"]:
    importlib.import_module(name)
from mtron_parallel.pool_server import main
main(settings["control"], settings["folder"])
"""


class PoolServer:
    """The pool's end: forks workers, kills them, knows which have died.

    Args:
        preload: modules that every worker will find imported.

    Attributes:
        control: becomes readable when a worker has died.
    """

    def __init__(self, preload: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mtron-")
        self.control, theirs = socket.socketpair()
        self._deaths: dict[int, int] = {}
        self._num_files = 0
        settings = {
            "path": sys.path,
            "control": theirs.fileno(),
            "folder": self._folder.name,
            "preload": list(preload),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, json.dumps(settings)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is the pool's matter
        )
        theirs.close()

    def new_file(self) -> str:
        """Return the name of a file that does not exist; the server's end removes it."""
        self._num_files += 1
        return str(Path(self._folder.name, f"file-{self._num_files}"))

    def fork(self) -> tuple[int, Connection]:
        """Return the process number of a new worker and the connection to it.

        Raises:
            RuntimeError: the server has ended; it has said why on standard error.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            with suppress(ConnectionError):
                socket.send_fds(self.control, [_MESSAGE.pack(_FORK, 0, 0)], [theirs.fileno()])
            while (message := self._receive())[0] != _FORKED:
                self._note(message)
            self._deaths.pop(message[1], None)  # of an earlier process with this number
            return message[1], Connection(ours.detach())

    def kill(self, pids: Sequence[int]) -> None:
        """Kill workers; returns when they are dead."""
        with suppress(ConnectionError):
            for pid in pids:
                self.control.sendall(_MESSAGE.pack(_KILL, pid, 0))
        for pid in pids:
            self.status(pid)

    def stacks(self, pids: Sequence[int]) -> list[str]:
        """Return the stacks of workers; an empty one where a worker does not react."""
        files = [stack_file(Path(self._folder.name), pid) for pid in pids]
        for pid in pids:
            if self.poll(pid) is None:
                with suppress(ProcessLookupError):
                    os.kill(pid, STACK_SIGNAL)
        deadline = time.monotonic() + _STACK_SECONDS
        sizes = [-1]
        while time.monotonic() < deadline:
            before, sizes = sizes, [file.stat().st_size for file in files]
            if all(sizes) and sizes == before:
                break
            time.sleep(0.05)
        return [file.read_text() for file in files]

    def poll(self, pid: int) -> int | None:
        """Return the exit code of a worker, negative for a signal; None while it lives."""
        while select.select([self.control], [], [], 0)[0]:
            self._note(self._receive())
        status = self._deaths.get(pid)
        return None if status is None else os.waitstatus_to_exitcode(status)

    def status(self, pid: int) -> int:
        """Wait for the end of a worker, and return its exit code as `poll` does."""
        while pid not in self._deaths:
            self._note(self._receive())
        return os.waitstatus_to_exitcode(self._deaths[pid])

    def close(self) -> None:
        """End the server and all workers."""
        self.control.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # workers are in its group
            self._process.wait()
        self._folder.cleanup()

    def _note(self, message: tuple[bytes, int, int]) -> None:
        kind, pid, status = message
        assert kind == _DIED, kind
        self._deaths[pid] = status

    def _receive(self) -> tuple[bytes, int, int]:
        data = b""
        with suppress(ConnectionError):
            data = self.control.recv(_MESSAGE.size, socket.MSG_WAITALL)
        if len(data) < _MESSAGE.size:
            code = self._process.wait(_END_SECONDS)
            raise RuntimeError(f"the pool's server has ended with exit code {code}")
        return _MESSAGE.unpack(data)


def main(control: int, folder: str) -> None:
    """Run the server: fork and kill workers as the pool asks, until that is gone."""
    torch.set_num_threads(1)
    gc.freeze()  # so that a collection in a worker does not touch, and thereby copy, every page
    with socket.socket(fileno=control) as connection:
        _serve(connection, Path(folder))


def _serve(control: socket.socket, folder: Path) -> None:
    """Do what the pool asks until that is gone."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, _ignore)
    signal.set_wakeup_fd(wake)
    workers: set[int] = set()
    try:
        while True:
            ready, _, _ = select.select([control, woken], [], [])
            if woken in ready:
                os.read(woken, 4096)
                _report_deaths(control, workers)
            if control in ready:
                _obey(control, workers, [control.fileno(), woken, wake], folder)
    except (EOFError, ConnectionError):
        return
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        for pid in workers:
            os.waitpid(pid, 0)


def _obey(control: socket.socket, workers: set[int], private: Sequence[int], folder: Path) -> None:
    """Receive one message and do what it asks."""
    data, descriptors, _, _ = socket.recv_fds(control, _MESSAGE.size, 1, socket.MSG_WAITALL)
    if len(data) < _MESSAGE.size:
        raise EOFError
    kind, pid, _ = _MESSAGE.unpack(data)
    if kind == _FORK:
        pid = _fork(descriptors[0], private, folder)
        workers.add(pid)
        control.sendall(_MESSAGE.pack(_FORKED, pid, 0))
    elif pid in workers:
        assert kind == _KILL, kind
        os.kill(pid, signal.SIGKILL)


def _fork(connection: int, private: Sequence[int], folder: Path) -> int:
    """Start a worker that is asked through `connection`; return its number."""
    pid = os.fork()
    if pid:
        os.close(connection)
        return pid
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in private:
            os.close(descriptor)
        work(Connection(connection), folder)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _report_deaths(control: socket.socket, workers: set[int]) -> None:
    for pid in list(workers):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            workers.remove(pid)
            control.sendall(_MESSAGE.pack(_DIED, pid, status))


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: the signal only has to end `select`."""
