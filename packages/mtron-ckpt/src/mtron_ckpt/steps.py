"""The directories of steps in a root: their names, which are committed, and the commit itself."""

import contextlib
import ctypes
import errno
import logging
import os
import re
import secrets
from pathlib import Path

from mtron_ckpt.manifest import COMMIT_FILE
from mtron_ckpt.storage import (
    if_abandoned,
    make_directory,
    own,
    remove_tree,
    sync_directory,
    write_file,
)

LATEST_FILE = "LATEST"
_STEP = re.compile(r"step-(\d{8,})")
_TEMPORARY = re.compile(r"(step-\d{8,}|LATEST)\.tmp-[0-9a-f]+")
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_log = logging.getLogger(__name__)


def step_name(step: int) -> str:
    """Return the directory name of a step."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """Return the step that a directory's name says, or None if it is no step's name."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def step_directories(root: Path) -> dict[int, Path]:
    """Return the directories in `root` that are called like a step, oldest first."""
    if not root.is_dir():
        return {}
    found = [(step_of(path), path) for path in root.iterdir() if path.is_dir()]
    return dict(sorted((step, path) for step, path in found if step is not None))


def committed_steps(root: Path) -> dict[int, Path]:
    """Return the directories in `root` that hold a committed step, oldest first.

    A directory gets its final name and its COMMIT file in one rename, so both are there or the
    step does not exist. Whether the bytes are still the saved ones is seen when they are read.
    """
    steps = step_directories(root)
    return {step: path for step, path in steps.items() if (path / COMMIT_FILE).is_file()}


def check_absent(root: Path, step: int) -> None:
    """Refuse to save a step that is there already.

    Raises:
        FileExistsError: naming its directory.
    """
    path = root / step_name(step)
    if path.exists():
        raise FileExistsError(
            errno.EEXIST,
            f"{path}: this step is there already and is never overwritten by itself; "
            "save with replace=True, delete the directory, or save to another root",
        )


class TemporaryStep:
    """The directory in which a step is written, owned by this process until it is committed.

    Args:
        root: the checkpoint root; created if it does not exist.
        step: the step.
    """

    def __init__(self, root: Path, step: int) -> None:
        self.root = root
        self.final = root / step_name(step)
        make_directory(root)
        while True:
            self.path = _temporary(self.final)
            self.path.mkdir()
            owner = own(self.path)
            if owner is not None:  # else a cleaner came between the two calls
                self._owner = owner
                break

    def commit(self, replace: bool) -> None:
        """Give the directory its final name; every file in it is durable already.

        Raises:
            OSError: the step is there already (unless `replace`), or the system refused.
        """
        if replace and self.final.exists():
            _exchange(self.path, self.final)  # the old step now has the temporary name
        else:
            try:
                self.path.rename(self.final)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    check_absent(self.root, int(step_of(self.final) or 0))
                raise
        sync_directory(self.root)

    def close(self) -> None:
        """Delete whatever has the temporary name, and give up the ownership."""
        try:
            remove_tree(self.path)
        except OSError as error:
            _log.warning("%s: could not be deleted: %s", self.path, error)
        with contextlib.suppress(OSError):
            os.close(self._owner)


def point_to_latest(root: Path) -> None:
    """Write LATEST, a hint for people and tools that cannot list directories.

    A failure is logged only: the step is committed all the same.
    """
    steps = committed_steps(root)
    if not steps:
        return
    temporary = _temporary(root / LATEST_FILE)
    try:
        write_file(temporary, f"{step_name(max(steps))}\n".encode())
        temporary.replace(root / LATEST_FILE)
        sync_directory(root)
    except OSError as error:
        _log.warning("%s: could not be written: %s", root / LATEST_FILE, error)
        remove_tree(temporary)


def delete_step(path: Path) -> None:
    """Delete a committed step; it disappears at once, however long its files take."""
    temporary = _temporary(path)
    path.rename(temporary)
    sync_directory(path.parent)
    remove_tree(temporary)


def remove_abandoned(root: Path) -> list[Path]:
    """Delete what interrupted saves have left in `root`, and nothing that is being written.

    Returns:
        What was deleted.
    """
    if not root.is_dir():
        return []
    removed = []
    for path in sorted(root.iterdir()):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        with if_abandoned(path) as abandoned:
            if abandoned:
                remove_tree(path)
                removed.append(path)
    return removed


def _temporary(final: Path) -> Path:
    return final.with_name(f"{final.name}.tmp-{secrets.token_hex(6)}")


def _exchange(a: Path, b: Path) -> None:
    """Swap two directories in one atomic step."""
    libc = ctypes.CDLL(None, use_errno=True)
    rename = getattr(libc, "renameat2", None)
    code = errno.ENOSYS
    if rename is not None:
        paths = (os.fsencode(a), os.fsencode(b))
        if rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
    raise OSError(
        code,
        f"{b}: cannot be replaced in one step on this system ({os.strerror(code)}); "
        "delete it first",
    )
