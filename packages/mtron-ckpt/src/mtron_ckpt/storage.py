"""Files and directories that survive a power cut, and directories that a process owns."""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORGOTTEN_SECONDS = 24 * 3600
"""Where the file system has no locks: age after which nobody can still be writing."""


def write_at(file: int, data: memoryview, position: int) -> None:
    """Write all of `data` at `position`, however small the pieces the system takes.

    Raises:
        OSError: the system refused, for instance because no space is left.
    """
    while data:
        written = os.pwrite(file, data, position)
        data, position = data[written:], position + written


def read_at(file: int, target: memoryview, position: int) -> int:
    """Fill `target` from `position`; return the bytes read, fewer only at the end of the file."""
    done = 0
    while done < len(target):
        count = os.preadv(file, [target[done:]], position + done)
        if count == 0:
            break
        done += count
    return done


def write_file(path: Path, data: bytes) -> None:
    """Create a file, durably. It must not exist."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        write_at(file, memoryview(data), 0)
        os.fsync(file)
    finally:
        os.close(file)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents, durably."""
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for created in missing:
        sync_directory(created.parent)


def remove_tree(path: Path) -> None:
    """Delete a file or directory; it may be gone already, or go while this runs."""
    while os.path.lexists(path):
        with contextlib.suppress(FileNotFoundError):  # another process deletes it, too
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def exchange(first: Path, second: Path) -> None:
    """Swap two names in one step.

    Raises:
        OSError: system or file system cannot, or the system refused.
    """
    rename = None
    if sys.platform == "linux":
        rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    names = os.fsencode(first), os.fsencode(second)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def free_bytes(path: Path) -> int:
    """Return the space that is free for this process where `path` (or its parent) lies."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


def check_space(path: Path, needed: int) -> None:
    """Refuse to begin what cannot fit.

    Raises:
        OSError: with `errno.ENOSPC`, naming path, needed and free bytes.
    """
    if needed > free_bytes(path):
        raise describe_failure(OSError(errno.ENOSPC, ""), path, needed)


def describe_failure(error: OSError, path: Path, needed: int) -> OSError:
    """Return an error of the same number that says what the user can do about it."""
    if error.errno in _NO_SPACE:
        free = "an unknown number of"
        with contextlib.suppress(OSError):
            free = f"{free_bytes(path):,}"
        return OSError(
            error.errno,
            f"{path}: no space for the checkpoint ({os.strerror(error.errno)}): it needs "
            f"{needed:,} bytes, {free} are free; free some space, keep fewer checkpoints or save "
            "elsewhere. Earlier checkpoints are whole",
        )
    reason = error.strerror or str(error)
    place = error.filename or path
    return OSError(
        error.errno or errno.EIO,
        f"{path}: the checkpoint was not saved: {reason} ({place}). Earlier checkpoints are whole",
    )


def own(path: Path) -> int | None:
    """Declare that this process writes in directory `path`, until the descriptor is closed.

    The lock is shared, so that several processes can write one checkpoint. It goes with the
    process, however that ends.

    Returns:
        The descriptor to close, or None if a cleaner was faster and the directory is gone.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    except OSError:
        return file  # no locks on this file system: cleaners go by age there
    if os.fstat(file).st_nlink == 0:
        os.close(file)
        return None
    return file


def is_same(file: int, path: Path) -> bool:
    """Tell whether an open file or directory is the one at `path`."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file), there)


@contextlib.contextmanager
def if_abandoned(path: Path) -> Iterator[bool]:
    """Tell whether `path` is there and no process owns it; while the block runs, none can."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        abandoned = True
    except BlockingIOError:
        abandoned = False
    except OSError:
        abandoned = time.time() - _newest_change(path) > _FORGOTTEN_SECONDS
    try:
        # What was opened may have gone before it was locked, and have a successor by now.
        yield abandoned and is_same(file, path)
    finally:
        os.close(file)


def _newest_change(path: Path) -> float:
    paths = [path, *path.rglob("*")]
    return max(p.lstat().st_mtime for p in paths)
