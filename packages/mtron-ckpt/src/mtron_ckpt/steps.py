"""The directories of steps in a root: their names, which are committed, and the commit itself."""

import contextlib
import errno
import logging
import os
import re
import secrets
from pathlib import Path
from typing import Protocol

from mtron_ckpt.index import Written
from mtron_ckpt.manifest import COMMIT_FILE
from mtron_ckpt.storage import (
    exchange,
    if_abandoned,
    make_directory,
    own,
    remove_tree,
    sync_directory,
    write_file,
)

LATEST_FILE = "LATEST"
_STEP = re.compile(r"step-(\d{8,})")
_TEMPORARY = re.compile(r"(step-\d{8,}|LATEST)\.tmp-([0-9a-f]+)")
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


class StepDirectory(Protocol):
    """The directory in which a step is written, until it is committed.

    Attributes:
        path: where it is now.
        final: what it becomes.
    """

    path: Path
    final: Path

    def check(self) -> None:
        """Raise if there is no point in writing on."""
        ...

    def gather(self, written: Written) -> list[Written] | None:
        """Wait for what has to be written beside this.

        Args:
            written: what this writer has written, durably.

        Returns:
            What all writers have written, by rank, for the one that commits; None when another
            has done that.
        """
        ...

    def commit(self, replace: bool) -> None:
        """Give the directory its final name; every file in it is durable already.

        Raises:
            OSError: the step is there already (unless `replace`), or the system refused.
        """
        ...

    def close(self, error: BaseException | None) -> None:
        """Give the directory up: it is committed, or deleted because of an error."""
        ...

    def stop_waiting(self) -> None:
        """Let the save end soon: do not wait for a writer that may never come."""
        ...


class TemporaryStep:
    """The directory of a sole writer, owned by this process until it is committed.

    Args:
        root: the checkpoint root; created if it does not exist.
        step: the step.
    """

    def __init__(self, root: Path, step: int) -> None:
        self.root = root
        self.final = root / step_name(step)
        make_directory(root)
        while True:
            self.path = temporary_name(self.final)
            self.path.mkdir()
            owner = own(self.path)
            if owner is not None:  # else a cleaner came between the two calls
                self._owner = owner
                break

    def check(self) -> None:
        """Nobody else can fail."""

    def gather(self, written: Written) -> list[Written]:
        """Nobody else writes."""
        return [written]

    def commit(self, replace: bool) -> None:
        """Give the directory its final name."""
        place_step(self.path, self.final, replace)

    def close(self, error: BaseException | None) -> None:
        """Delete whatever has the temporary name, and give up the ownership."""
        discard(self.path)
        with contextlib.suppress(OSError):
            os.close(self._owner)

    def stop_waiting(self) -> None:
        """Nobody is waited for."""


def place_step(path: Path, final: Path, replace: bool) -> None:
    """Give a temporary directory the name of its step, durably.

    Args:
        path: the directory; afterwards, what was replaced has this name.
        final: the step's directory.
        replace: whether it may be there already.

    Raises:
        OSError: it is there already (unless `replace`), or the system refused.
    """
    if replace and final.exists():
        try:
            exchange(path, final)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{final}: cannot be replaced in one step on this system ({error.strerror}); "
                "delete it first",
            ) from error
    else:
        try:
            path.rename(final)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                check_absent(final.parent, int(step_of(final) or 0))
            raise
    sync_directory(final.parent)


def discard(path: Path) -> None:
    """Delete a temporary directory; what cannot be deleted now is left to a cleaner."""
    try:
        remove_tree(path)
    except OSError as error:
        _log.warning("%s: could not be deleted: %s", path, error)


def retire(path: Path) -> None:
    """Delete a temporary directory or file whose name others may take again at once."""
    nameless = temporary_name(path.with_name(path.name.partition(".")[0]))
    with contextlib.suppress(FileNotFoundError):  # another process deletes it, too
        path.rename(nameless)
        remove_tree(nameless)


def point_to_latest(root: Path) -> None:
    """Write LATEST, a hint for people and tools that cannot list directories.

    A failure is logged only: the step is committed all the same.
    """
    steps = committed_steps(root)
    if not steps:
        return
    temporary = temporary_name(root / LATEST_FILE)
    try:
        write_file(temporary, f"{step_name(max(steps))}\n".encode())
        temporary.replace(root / LATEST_FILE)
        sync_directory(root)
    except OSError as error:
        _log.warning("%s: could not be written: %s", root / LATEST_FILE, error)
        remove_tree(temporary)


def delete_step(path: Path) -> None:
    """Delete a committed step; it disappears at once, however long its files take."""
    temporary = temporary_name(path)
    path.rename(temporary)
    sync_directory(path.parent)
    remove_tree(temporary)


def remove_abandoned(root: Path, spared: str | None = None) -> list[Path]:
    """Delete what interrupted saves have left in `root`, and nothing that is being written.

    Args:
        root: the checkpoint root.
        spared: token of temporary names that are left alone.

    Returns:
        What was deleted.
    """
    if not root.is_dir():
        return []
    removed = []
    for path in sorted(root.iterdir()):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or match[2] == spared:
            continue
        with if_abandoned(path) as abandoned:
            if abandoned:
                retire(path)
                removed.append(path)
    return removed


def temporary_name(final: Path, token: str | None = None) -> Path:
    """Return the name under which a directory or file comes to be, or goes.

    Args:
        final: its proper name.
        token: hexadecimal digits that make the name; without, nobody else has the name.
    """
    return final.with_name(f"{final.name}.tmp-{token or secrets.token_hex(6)}")
