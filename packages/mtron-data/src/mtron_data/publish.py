"""Directories that appear under their name whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS, errno.EINVAL}


@contextmanager
def published_directory(target: Path, *, replace: bool) -> Iterator[Path]:
    """Yield an empty directory beside `target` that becomes it if the block ends well.

    On an exception it is removed. What a killed process left is removed by the next one, and
    only one process at a time writes for the same target.

    Args:
        target: the directory to make.
        replace: put it in the place of one that is there; an empty one is always replaced.

    Raises:
        ValueError: another process is or was writing `target`, or its parent is a file.
        OSError: of the file system; a full disk names `target`.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        _make_parent(target)
        lock = _exclusive(partial, target)
        try:
            for leftover in partial.iterdir():
                _remove(leftover)
            try:
                yield partial
                _sync(partial)
                _swap(partial, target, replace=replace)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        finally:
            os.close(lock)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"{target}: no space left while writing; nothing was kept: free some space or "
                "choose another disk",
            ) from error
        raise


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(
            f"{target}: cannot be made, because a part of this path is a file; choose another "
            "output"
        ) from None


def _exclusive(partial: Path, target: Path) -> int:
    """Create `partial` and lock it; return the descriptor that holds the lock."""
    import fcntl  # not on Windows, where the package must still import

    while True:
        partial.mkdir(exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ValueError(
                f"{target}: another process is writing it; wait for that one or choose another "
                "output"
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:  # some network file systems have no locks
                os.close(lock)
                raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), partial.stat()):
                return lock
        os.close(lock)  # its owner renamed or removed it between our two calls


def _swap(partial: Path, target: Path, *, replace: bool) -> None:
    old = target.with_name(f".{target.name}.old")
    if old.exists():
        _remove(old)
    if target.exists() and any(target.iterdir()):
        if not replace:
            raise ValueError(
                f"{target}: appeared meanwhile; choose another output, or replace it "
                "(overwrite=True, --overwrite)"
            )
        target.rename(old)
    partial.rename(target)
    _sync_directory(target.parent)
    if old.exists():
        _remove(old)


def _sync(directory: Path) -> None:
    for file in directory.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
