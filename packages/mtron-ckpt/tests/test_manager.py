import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mtron_ckpt
from mtron_ckpt import CheckpointManager, LocalArray, Metadata, data_file, storage
from mtron_ckpt.manager import plan_retention
from mtron_ckpt.staging import BUFFER_BYTES
from mtron_ckpt.storage import write_at

LEAK_BYTES = 8 << 20


def arrays_of(values):
    return {name: LocalArray.whole(value) for name, value in values.items()}


def listed(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


steps = st.sets(st.integers(0, 50))


@given(steps, st.integers(0, 50), st.integers(1, 5), st.none() | st.integers(1, 9))
def test_retention_keeps_what_it_must(others, saved, keep_last, keep_every):
    present = others | {saved}
    doomed = plan_retention(present, saved, keep_last, keep_every)
    kept = present - set(doomed)
    assert set(doomed) <= present
    assert max(present) in kept
    assert saved in kept
    assert kept >= set(sorted(present)[-keep_last:])
    for step in doomed:
        assert keep_every is None or step % keep_every != 0
        assert len([k for k in kept if k > step]) >= keep_last
    assert plan_retention(present, saved, None, keep_every) == []


def test_retention_and_listing(tmp_path, values, same):
    with CheckpointManager(tmp_path / "a" / "b", keep_last=2, keep_every=30) as manager:
        assert manager.steps() == []
        assert manager.latest() is None
        for step in range(10, 80, 10):
            manager.save(arrays_of(values(step)), Metadata(step=step))
        manager.wait()
        assert manager.steps() == [30, 60, 70]
        assert manager.latest() == tmp_path / "a" / "b" / "step-00000070"
    names = ["LATEST", "step-00000030", "step-00000060", "step-00000070"]
    assert listed(tmp_path / "a" / "b") == names
    assert (tmp_path / "a" / "b" / "LATEST").read_text() == "step-00000070\n"
    for step in (30, 60, 70):
        checkpoint = mtron_ckpt.open(tmp_path / "a" / "b" / f"step-{step:08d}")
        for name, value in values(step).items():
            assert same(checkpoint.read(name), value)


def test_a_step_older_than_the_newest_survives_its_own_save(tmp_path, values):
    with CheckpointManager(tmp_path, keep_last=1) as manager:
        manager.save(arrays_of(values(0)), Metadata(step=40)).wait()
        manager.save(arrays_of(values(0)), Metadata(step=30)).wait()
        assert manager.steps() == [30, 40]


def test_damaged_and_foreign_directories_are_not_deleted(tmp_path, values):
    (tmp_path / "notes").mkdir(parents=True)
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-1.tmp-zz").mkdir()
    with CheckpointManager(tmp_path, keep_last=1) as manager:
        manager.save(arrays_of(values(0)), Metadata(step=2)).wait()
        assert manager.steps() == [2]
    kept = ["LATEST", "notes", "step-00000001", "step-00000002", "step-1.tmp-zz"]
    assert listed(tmp_path) == kept


@pytest.mark.parametrize("field", ["keep_last", "keep_every"])
def test_counts_must_be_positive(tmp_path, field):
    with pytest.raises(ValueError, match=f"{field}: must be at least 1, got 0"):
        CheckpointManager(tmp_path, **{field: 0})


def test_the_error_of_a_save_surfaces_at_the_next_one(tmp_path, values, monkeypatch):
    def fail(*_):
        raise OSError(5, "broken disk")

    manager = CheckpointManager(tmp_path)
    manager.save(arrays_of(values(0)), Metadata(step=1)).wait()
    monkeypatch.setattr(data_file, "write_at", fail)
    failing = manager.save(arrays_of(values(0)), Metadata(step=2))
    while not failing.done:
        time.sleep(0.001)
    monkeypatch.setattr(data_file, "write_at", write_at)
    with pytest.raises(OSError, match=r"step-00000002: the checkpoint was not saved.*broken disk"):
        manager.save(arrays_of(values(0)), Metadata(step=3))
    assert manager.steps() == [1]
    assert listed(tmp_path) == ["LATEST", "step-00000001"]
    manager.save(arrays_of(values(0)), Metadata(step=3)).wait()
    assert manager.steps() == [1, 3]
    manager.close()


@pytest.mark.parametrize("how", ["wait", "close"])
def test_the_error_of_the_last_save_surfaces_at_the_end(tmp_path, values, monkeypatch, how):
    def fail(*_):
        raise OSError(5, "broken disk")

    manager = CheckpointManager(tmp_path)
    monkeypatch.setattr(data_file, "write_at", fail)
    manager.save(arrays_of(values(0)), Metadata(step=2))
    with pytest.raises(OSError, match="broken disk"):
        getattr(manager, how)()
    getattr(manager, how)()


def leave_abandoned(root: Path) -> Path:
    """Make what a killed save leaves."""
    path = root / "step-00000009.tmp-0123456789ab"
    (path / "data").mkdir(parents=True)
    (path / "data" / "writer-0000-000.zip").write_bytes(b"half")
    (root / "LATEST.tmp-00ff").write_bytes(b"")
    return path


def test_what_interrupted_saves_left_is_removed(tmp_path, values, save):
    save(tmp_path, values(0), 1)
    leave_abandoned(tmp_path)
    assert mtron_ckpt.open(tmp_path).step == 1
    assert CheckpointManager(tmp_path).steps() == [1]
    assert listed(tmp_path) == ["LATEST", "step-00000001"]


def test_what_a_live_thread_writes_is_not_removed(tmp_path, values, monkeypatch):
    begun, gate = threading.Event(), threading.Event()

    def slow_write(*arguments):
        begun.set()
        gate.wait(10)
        write_at(*arguments)

    monkeypatch.setattr(data_file, "write_at", slow_write)
    handle = mtron_ckpt.save(tmp_path, arrays_of(values(0)), Metadata(step=1))
    begun.wait(10)
    (temporary,) = tmp_path.iterdir()
    CheckpointManager(tmp_path)
    assert temporary.exists()
    gate.set()
    assert mtron_ckpt.verify(handle.wait()).ok


OWNER = """
import sys, time
from pathlib import Path
from mtron_ckpt.steps import TemporaryStep
step = TemporaryStep(Path(sys.argv[1]), 5)
print(step.path, flush=True)
time.sleep(60)
"""


def test_what_a_live_process_writes_is_removed_only_after_its_end(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    CheckpointManager(tmp_path)
    assert path.is_dir()
    process.kill()
    process.wait()
    process.stdout.close()
    CheckpointManager(tmp_path)
    assert not path.exists()


def test_without_locks_only_old_leftovers_are_removed(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "not supported")

    monkeypatch.setattr(storage.fcntl, "flock", no_locks)
    path = leave_abandoned(tmp_path)
    os.utime(tmp_path / "LATEST.tmp-00ff", (0, 0))
    CheckpointManager(tmp_path)
    assert listed(tmp_path) == [path.name]
    for place in (path, *path.rglob("*")):
        os.utime(place, (0, 0))
    CheckpointManager(tmp_path)
    assert listed(tmp_path) == []


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_twenty_saves_do_not_leak(tmp_path):
    values = {f"param/{n}": np.full(1 << 20, n, np.float32) for n in range(8)}
    values |= {f"param/small{n}": np.full(100, n, np.float32) for n in range(100)}
    with CheckpointManager(tmp_path, keep_last=1) as manager:
        seen = []
        for step in range(20):
            manager.save(arrays_of(values), Metadata(step=step, state={"s": [0] * 1000})).wait()
            files = len(list(Path("/proc/self/fd").iterdir()))
            pool = manager._pool.allocated_bytes
            seen.append((resident_bytes(), pool, files, threading.active_count()))
        assert seen[-1][1] == seen[0][1] == 2 * BUFFER_BYTES
        assert seen[-1][2:] == seen[1][2:]
        assert seen[-1][0] - seen[4][0] < LEAK_BYTES
    assert manager._pool.allocated_bytes == 0
