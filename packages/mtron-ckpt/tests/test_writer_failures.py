"""What happens to all writers when one of them cannot go on."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import mtron_ckpt
from mtron_ckpt import LocalArray, data_file, shared_step
from mtron_ckpt.shared_step import SharedStep
from mtron_ckpt.storage import write_at

Usage = namedtuple("Usage", "total used free")


def test_what_is_wrong_on_one_writer_is_raised_on_all(trio):
    def attempt(rank):
        arrays = {"param/x": LocalArray.whole(np.array([None]))} if rank == 1 else None
        return trio.begin(rank, arrays=arrays).wait()

    outcomes = trio.together(attempt)
    for rank, outcome in enumerate(outcomes):
        prefix = "" if rank == 1 else "writer 1: "
        with pytest.raises(ValueError, match=rf"^{prefix}param/x: .*object"):
            raise outcome
    assert trio.names() == []


def test_who_comes_late_learns_of_the_failure(trio):
    """The one who failed is gone by then, and the last one tidies up."""
    with pytest.raises(ValueError, match="object"):
        trio.begin(1, arrays={"param/x": LocalArray.whole(np.array([None]))})
    for rank in (2, 0):
        assert len(trio.names()) == 1
        with pytest.raises(ValueError, match=r"^writer 1: .*object"):
            trio.begin(rank)
    assert trio.names() == []
    trio.together(lambda rank: trio.begin(rank).wait())
    trio.check()


def test_a_step_can_be_saved_again_after_a_failure(trio):
    """Each writer tries again at once, while others may still be busy giving up."""

    def stubborn(rank):
        with pytest.raises(OSError, match="broken"):
            trio.save_broken(rank, 2)
        return trio.begin(rank, value=7.0).wait()

    assert trio.together(stubborn) == [trio.root / "step-00000001"] * trio.count
    trio.check(value=7.0)
    assert trio.names() == ["LATEST", "step-00000001"]


@pytest.mark.parametrize("who", range(3))
def test_a_writer_that_fails_while_staging_is_named_to_the_others(trio, who):
    outcomes = trio.together(lambda rank: trio.save_broken(rank, who))
    for rank, outcome in enumerate(outcomes):
        prefix = "" if rank == who else f"writer {who}: "
        with pytest.raises(OSError, match=rf"{prefix}.*broken source") as raised:
            raise outcome
        assert raised.value.errno == errno.EIO
    assert trio.names() == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("who", range(3))
def test_no_space_for_one_writer(trio, who, monkeypatch):
    """The message needs room, too; the writer's own data makes it."""

    def full(file, data, position):
        name = str(Path(f"/proc/self/fd/{file}").readlink())
        if name.endswith(f"writer-{who:04d}-000.zip"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_at(file, data, position)

    trio.together(lambda rank: trio.begin(rank).wait())
    monkeypatch.setattr(data_file, "write_at", full)
    outcomes = trio.together(lambda rank: trio.begin(rank, step=2).wait())
    for rank, outcome in enumerate(outcomes):
        prefix = "" if rank == who else f"writer {who}: "
        with pytest.raises(OSError, match=rf"{prefix}.*step-00000002: no space") as raised:
            raise outcome
        assert raised.value.errno == errno.ENOSPC
        assert " are free" in str(outcome)
    assert trio.names() == ["LATEST", "step-00000001"]
    trio.check()


def test_a_disk_too_full_for_all_shares_together(trio, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 10_000))
    outcomes = trio.together(lambda rank: trio.begin(rank).wait())
    assert [outcome.errno for outcome in outcomes] == [errno.ENOSPC] * trio.count
    assert "it needs" in str(outcomes[0])
    assert "writer 0: " in str(outcomes[2])
    assert trio.names() == []


@pytest.mark.parametrize("replace", [False, True])
def test_a_commit_that_fails_is_told_to_all(trio, monkeypatch, replace):
    if replace:
        trio.together(lambda rank: trio.begin(rank).wait())

    def broken(*_):
        raise OSError(errno.EIO, "broken directory")

    monkeypatch.setattr(shared_step, "place_step", broken)
    outcomes = trio.together(
        lambda rank: trio.begin(rank, value=1.0, replace=replace).wait(), trio.count
    )
    for rank, outcome in enumerate(outcomes):
        with pytest.raises(OSError, match="broken directory" if rank == 0 else "writer 0: "):
            raise outcome
    assert trio.names() == (["LATEST", "step-00000001"] if replace else [])
    monkeypatch.undo()
    trio.together(lambda rank: trio.begin(rank, value=2.0, replace=replace).wait())
    trio.check(value=2.0)


def test_a_writer_that_is_interrupted_ends_the_save(trio):
    outcomes = trio.together(lambda rank: trio.save_broken(rank, 2, KeyboardInterrupt()))
    assert isinstance(outcomes[2], KeyboardInterrupt)
    for outcome in outcomes[:2]:
        with pytest.raises(OSError, match=r"writer 2: gave up \(KeyboardInterrupt"):
            raise outcome
    assert trio.names() == []


def test_who_does_not_come_in_time_is_named(trio):
    outcomes = trio.together(lambda rank: trio.begin(rank, timeout_seconds=0.3), 2)
    for outcome in outcomes:
        with pytest.raises(TimeoutError, match=r"writers? .*2 gave no sign for 0\.3 seconds"):
            raise outcome
    with pytest.raises(OSError, match="2 gave no sign"):
        trio.begin(2)  # too late
    assert trio.names() == []


def test_who_dies_in_between_is_named_at_once(trio):
    """The lock is what counts: this one is released as by the end of a process."""
    dead = SharedStep(trio.root, 1, trio.writers(2))
    dead._board.close()
    os.close(dead._directory)
    for outcome in trio.together(trio.begin, 2):
        with pytest.raises(ConnectionError, match="writer 2 ended before doing a part of it"):
            raise outcome
    assert trio.names() == []


def test_without_locks_all_works_but_death_is_noticed_by_time(trio, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    trio.together(lambda rank: trio.begin(rank).wait())
    trio.check()
    outcomes = trio.together(lambda rank: trio.save_broken(rank, 1, step=2))
    assert all("broken source" in str(outcome) for outcome in outcomes)
    dead = SharedStep(trio.root, 3, trio.writers(2))
    dead._board.close()
    os.close(dead._directory)
    for outcome in trio.together(
        lambda rank: trio.begin(rank, step=3, timeout_seconds=0.3), trio.count - 1
    ):
        with pytest.raises(OSError, match="2 gave no sign"):
            raise outcome
    trio.together(lambda rank: trio.begin(rank, step=4).wait())
    assert mtron_ckpt.open(trio.root).step == 4
