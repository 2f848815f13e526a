"""A directory that appears under its name whole or not at all."""

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mtron_ckpt.storage import exchange, make_directory, remove_tree, sync_directory


def check_destination(
    destination: Path, overwrite: bool, is_replaceable: Callable[[Path], bool]
) -> None:
    """Refuse a destination that exists, unless it is empty or may be replaced.

    Args:
        destination: where a directory will be published.
        overwrite: whether the user allowed replacing it.
        is_replaceable: says of an existing directory whether it is of a kind that may be removed;
            a mistyped path must not cost anybody their home directory.

    Raises:
        ValueError: naming the destination and the remedy.
    """
    if not os.path.lexists(destination):
        return
    if not destination.is_dir():
        raise ValueError(f"{destination}: is not a directory; choose another destination")
    if not any(destination.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"{destination}: already exists; choose another destination or allow "
            "replacing it (--overwrite)"
        )
    if not is_replaceable(destination):
        raise ValueError(
            f"{destination}: is not a checkpoint and will not be replaced; "
            "choose another destination or remove it yourself"
        )


@contextmanager
def publish_directory(destination: Path) -> Iterator[Path]:
    """Yields an empty directory beside `destination`; it becomes `destination` at the end.

    An existing destination is replaced, in one step where the system can exchange two names
    (Linux), else in two. On an error nothing is published and the new directory is removed; a
    killed process leaves it under a name with `.tmp-`.
    """
    destination = destination.resolve()
    make_directory(destination.parent)
    staging = destination.with_name(f"{destination.name}.tmp-{uuid.uuid4().hex[:8]}")
    staging.mkdir()
    try:
        yield staging
        _sync_tree(staging)
        if destination.exists():
            _replace(staging, destination)
        else:
            staging.rename(destination)
        sync_directory(destination.parent)
    except OSError as error:
        raise _renamed(error, staging, destination) from error.__cause__
    finally:
        remove_tree(staging)


def _replace(staging: Path, destination: Path) -> None:
    """Puts `staging` in the place of `destination` and removes what was there."""
    try:
        exchange(staging, destination)
    except OSError:  # not every system and file system can
        _replace_in_two_steps(staging, destination)
    else:
        remove_tree(staging)


def _replace_in_two_steps(staging: Path, destination: Path) -> None:
    old = destination.with_name(f"{destination.name}.old-{uuid.uuid4().hex[:8]}")
    destination.rename(old)
    try:
        staging.rename(destination)
    except OSError:
        old.rename(destination)
        raise
    remove_tree(old)


def _sync_tree(root: Path) -> None:
    """Makes files and names below a directory durable."""
    for directory, _, files in os.walk(root):
        for name in files:
            descriptor = os.open(Path(directory) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(directory))


def _renamed(error: OSError, staging: Path, destination: Path) -> OSError:
    """The same error in terms of the destination, which is what the user knows."""
    text = error.strerror or str(error)
    if str(staging) in text:
        return OSError(error.errno, text.replace(str(staging), str(destination)))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(
            error.errno,
            f"{destination}: no space left, nothing was written; free some or choose another place",
        )
    return error
