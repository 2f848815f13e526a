"""No space: before the first byte, and in the middle of a file."""

import errno
import os
import resource
import shutil
from collections import namedtuple

import numpy as np
import pytest

import mtron_ckpt
from mtron_ckpt import CheckpointManager, LocalArray, Metadata

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {f"param/{n}": LocalArray.whole(rng.standard_normal(100_000)) for n in range(10)}


@pytest.fixture
def root(tmp_path, save, values):
    save(tmp_path / "root", values(0), 1)
    return tmp_path / "root"


def check_untouched(root, values, same):
    assert sorted(path.name for path in root.iterdir()) == ["LATEST", "step-00000001"]
    checkpoint = mtron_ckpt.open(root)
    for name, value in values(0).items():
        assert same(checkpoint.read(name), value)


def test_a_disk_that_is_too_full_is_refused_at_once(root, arrays, values, same, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 5_000_000))
    with pytest.raises(OSError, match="no space") as raised:
        mtron_ckpt.save(root, arrays, Metadata(step=2))
    assert raised.value.errno == errno.ENOSPC
    for part in (str(root), "it needs 8,0", "5,000,000 are free", "Earlier checkpoints are whole"):
        assert part in str(raised.value)
    check_untouched(root, values, same)


@pytest.fixture
def small_files():
    """Let the system refuse what lies beyond 3 MB of any file, after a short write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_system_refuses_in_the_middle_of_a_file(root, arrays, values, same, small_files):
    handle = mtron_ckpt.save(root, arrays, Metadata(step=2))
    with pytest.raises(OSError, match="no space") as raised:
        handle.wait()
    assert raised.value.errno == errno.EFBIG
    for part in ("step-00000002", "it needs 8,0", " are free", "Earlier checkpoints are whole"):
        assert part in str(raised.value)
    check_untouched(root, values, same)


@pytest.mark.parametrize("limit_buffers", [None, 2])
def test_the_disk_fills_up_while_the_caller_stages(
    root, arrays, values, same, small_chunks, monkeypatch, limit_buffers
):
    """Also where the caller waits for buffers that a failing thread must give back."""
    room = [1_000_000]
    real = os.pwrite

    def pwrite(file, data, position):
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(file, data[: max(1, min(len(data) // 2, room[0]))], position)
        room[0] -= count
        return count

    limit = limit_buffers and limit_buffers * mtron_ckpt.staging.BUFFER_BYTES
    pool = mtron_ckpt.StagingPool(limit)
    monkeypatch.setattr(os, "pwrite", pwrite)
    handle = mtron_ckpt.save(root, arrays, Metadata(step=2), pool=pool)
    with pytest.raises(OSError, match="no space") as raised:
        handle.wait()
    assert raised.value.errno == errno.ENOSPC
    check_untouched(root, values, same)
    pool.clear()
    assert pool.allocated_bytes == 0, "every buffer came back"
    room[0] = 10**9
    mtron_ckpt.save(root, arrays, Metadata(step=2), pool=pool).wait()  # short writes, but space
    assert mtron_ckpt.verify(root).ok


def test_no_space_for_the_last_small_files(root, values, same, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mtron_ckpt.committing.write_file", full)
    manager = CheckpointManager(root)
    manager.save({}, Metadata(step=2))
    with pytest.raises(OSError, match="no space"):
        manager.wait()
    check_untouched(root, values, same)


def test_no_space_for_the_hint_is_not_an_error(root, values, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mtron_ckpt.steps.write_file", full)
    mtron_ckpt.save(root, {}, Metadata(step=2)).wait()
    assert mtron_ckpt.open(root).step == 2
    assert "LATEST: could not be written" in caplog.text


def test_a_directory_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))

    monkeypatch.setattr("mtron_ckpt.steps.make_directory", denied)
    with pytest.raises(OSError, match=r"step-00000002: .*not saved: Permission denied"):
        mtron_ckpt.save(tmp_path / "root", {}, Metadata(step=2))


def test_a_pool_too_small_for_one_buffer_is_refused():
    with pytest.raises(ValueError, match="limit_bytes: too small"):
        mtron_ckpt.StagingPool(limit_bytes=1000)
