"""How the writers of a checkpoint talk: small files in a directory that they share.

Never by a collective: a save that runs beside the training must not be able to hold it up.
"""

import contextlib
import fcntl
import os
import time
from enum import Enum, auto
from pathlib import Path
from typing import TypeVar

from mtron_ckpt.manifest import Document
from mtron_ckpt.storage import write_at

FOLDER = "coordination"
_FIRST_PAUSE_SECONDS = 0.0005
_PAUSE_GROWTH = 1.5
_LONGEST_PAUSE_SECONDS = 0.1
_PAUSE_PER_WRITER_SECONDS = 0.001  # many writers look less often
_DOCUMENT = TypeVar("_DOCUMENT", bound=Document)


class Presence(Enum):
    """Whether a writer is there, as its lock tells."""

    ABSENT = auto()
    """It has not come yet."""
    THERE = auto()
    """Its process lives and has not left."""
    GONE = auto()
    """It has left, or its process has ended."""
    UNKNOWN = auto()
    """It has come, and the file system has no locks."""


def alive_file(rank: int) -> str:
    """Return the name of the file that a writer holds a lock on while others may wait for it."""
    return f"alive-{rank}"


class Coordination:
    """The files of one save, seen by one writer.

    All are addressed through the directory itself, so that it may be renamed meanwhile.

    Args:
        folder: where they are.
        rank: this writer.

    Raises:
        FileNotFoundError: there is no such directory.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._rank = rank
        self._folder = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # keeps cleaners away wherever the folder is moved
            fcntl.flock(self._folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self._alive: int | None = None

    def enter(self) -> bool:
        """Say that this writer has come; false if it has come here before."""
        name = alive_file(self._rank)
        if name in self.names():
            return False
        hidden = f".{name}"  # it gets its name when it is locked
        self._alive = os.open(hidden, os.O_RDWR | os.O_CREAT, 0o644, dir_fd=self._folder)
        with contextlib.suppress(OSError):  # no locks on this file system
            fcntl.flock(self._alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(hidden, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        return True

    def leave(self) -> None:
        """Say that nobody has to wait for this writer any more."""
        if self._alive is not None:
            os.close(self._alive)
            self._alive = None

    def close(self) -> None:
        """Leave, and look no more."""
        self.leave()
        os.close(self._folder)

    def names(self) -> set[str]:
        """Return the names of all files."""
        with os.scandir(self._folder) as entries:
            return {entry.name for entry in entries}

    def publish(self, kind: str, document: Document) -> None:
        """Show a document of this writer to the others, whole or not at all.

        Raises:
            OSError: the system refused.
        """
        name = f"{kind}-{self._rank}.json"
        hidden = f".{name}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        file = os.open(hidden, flags, 0o644, dir_fd=self._folder)
        try:
            write_at(file, memoryview(document.model_dump_json().encode()), 0)
        finally:
            os.close(file)
        os.rename(hidden, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def read(self, name: str, form: type[_DOCUMENT]) -> _DOCUMENT:
        """Return a document that has been published."""
        file = os.open(name, os.O_RDONLY, dir_fd=self._folder)
        with os.fdopen(file, "rb") as stream:
            return form.model_validate_json(stream.read())

    def presence(self, rank: int) -> Presence:
        """Tell whether a writer is there."""
        try:
            file = os.open(alive_file(rank), os.O_RDONLY, dir_fd=self._folder)
        except FileNotFoundError:
            return Presence.ABSENT
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Presence.THERE
        except OSError:
            return Presence.UNKNOWN
        finally:
            os.close(file)
        return Presence.GONE


class Patience:
    """Pauses between looks, longer and longer, as long as there are signs of life.

    Args:
        timeout_seconds: longest time without a sign.
        count: the number of writers.
    """

    def __init__(self, timeout_seconds: float, count: int) -> None:
        self._timeout = timeout_seconds
        self._longest = _LONGEST_PAUSE_SECONDS + count * _PAUSE_PER_WRITER_SECONDS
        self._pause = _FIRST_PAUSE_SECONDS
        self._seen: object = None
        self._end = time.monotonic() + timeout_seconds

    @property
    def tried(self) -> bool:
        """Whether the pauses have become as long as they get."""
        return self._pause >= self._longest

    def pause(self, seen: object = None) -> bool:
        """Sleep a little; false if time is up.

        Args:
            seen: what there is to see; when it changes, the time begins anew.
        """
        now = time.monotonic()
        if seen != self._seen:
            self._seen, self._end = seen, now + self._timeout
        if now >= self._end:
            return False
        time.sleep(min(self._pause, self._end - now))
        self._pause = min(self._pause * _PAUSE_GROWTH, self._longest)
        return True
