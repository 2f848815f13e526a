"""One run per directory at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold `directory` for this process; the operating system lets go however it ends.

    Raises:
        ValueError: another process holds it, or it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "lock").open("w")
    except OSError as error:
        raise ValueError(
            f"run.directory: {directory} cannot be written: {error.strerror}; use another one"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"run.directory: another process is training in {directory}; "
                "wait for it, or use another directory"
            ) from None
        yield
