"""What a process does that `launch` has started: say why it fails, end with its launcher.

Both functions do nothing in a process that was started otherwise, for example by torchrun.
Imports no torch.
"""

import os
import select
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mtron_parallel.failures import (
    ALIVE,
    DIRECTORY,
    Cause,
    Failure,
    cause_of,
    write_failure,
    write_place,
)
from mtron_parallel.stacks import place_of_error, place_of_thread

_NOTE_SECONDS = 1.0
"""How often a process notes where it is."""


@contextmanager
def report_failures(
    environment: Mapping[str, str],
    expected: tuple[type[Exception], ...] = (ValueError, OSError),
    describe: Callable[[BaseException], str] = str,
) -> Iterator[None]:
    """Tell the launcher of an exception that leaves this context.

    The launcher prints one paragraph about the first failure of all processes. So that nothing is
    said twice, an exception for which its message is enough then becomes `SystemExit(1)`: one of
    the `expected`, a lost peer, a collective that timed out. Any other goes on, and Python prints
    its traceback. Without a launcher every exception goes on as it is.

    Args:
        environment: usually `os.environ`.
        expected: exceptions whose message tells the user what to do.
        describe: gives the text of one of these.
    """
    try:
        yield
    except Exception as error:
        directory = _directory(environment)
        if directory is None:
            raise
        cause = cause_of(error)
        enough = isinstance(error, expected) or cause is not Cause.OWN
        text = describe(error) if enough else f"{type(error).__name__}: {error}"
        write_failure(directory, Failure(_rank(environment), cause, text, place_of_error(error)))
        if not enough:
            raise
        raise SystemExit(1) from None


def die_with_parent(environment: Mapping[str, str]) -> None:
    """End this process, and those it has started, as soon as its launcher has ended.

    However that ends: also when it is killed. A daemon thread waits for it; once a second it notes
    where the main thread is, so that the launcher can say so of a process that was killed.

    Args:
        environment: usually `os.environ`.
    """
    directory = _directory(environment)
    if directory is not None:
        arguments = (directory, _rank(environment))
        threading.Thread(target=_follow, args=arguments, name="mtron-launched", daemon=True).start()


def _follow(directory: Path, rank: int) -> None:
    """Note the main thread's place until the launcher has ended, then end this process."""
    noted = None
    with suppress(FileNotFoundError):  # it has ended, and removed its files
        launcher = os.open(directory / ALIVE, os.O_RDONLY | os.O_NONBLOCK)
        while _is_alive(launcher):
            place = place_of_thread(threading.main_thread().ident)
            if place is not None and place != noted:
                write_place(directory, rank, place)
                noted = place
            select.select([launcher], [], [], _NOTE_SECONDS)
    shutil.rmtree(directory, ignore_errors=True)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _is_alive(launcher: int) -> bool:
    """Whether the launcher still holds the writing end of its pipe, in which it never writes."""
    try:
        return os.read(launcher, 1) != b""
    except BlockingIOError:
        return True


def _directory(environment: Mapping[str, str]) -> Path | None:
    return Path(environment[DIRECTORY]) if DIRECTORY in environment else None


def _rank(environment: Mapping[str, str]) -> int:
    return int(environment["RANK"])
