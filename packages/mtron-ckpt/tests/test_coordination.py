"""What several writers say to each other, and what happens when one of them cannot go on."""

import errno
import os
import shutil
import threading
import time
import uuid
from collections import namedtuple
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import mtron_ckpt
from mtron_ckpt import (
    CheckpointManager,
    LocalArray,
    Metadata,
    Writers,
    coordination,
    data_file,
    shared_step,
)
from mtron_ckpt.coordination import Coordination, Presence
from mtron_ckpt.shared_step import SharedStep
from mtron_ckpt.storage import write_at

COUNT = 3
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def session() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def begin(tmp_path, session):
    """Begin a save of one row per writer and a replicated vector."""

    def call(rank, step=1, value=0.0, timeout_seconds=60, arrays=None, **options):
        rows = np.full((1, 500), rank + value)
        mine = {
            "param/w": LocalArray(rows, (COUNT, 500), (rank, 0)),
            "param/b": LocalArray.whole(np.full(300, value)),
        }
        writers = Writers(rank, COUNT, session, timeout_seconds)
        arrays = mine if arrays is None else arrays
        return mtron_ckpt.save(tmp_path, arrays, Metadata(step=step), writers=writers, **options)

    return call


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def check(root: Path, step: int = 1, value: float = 0.0) -> None:
    checkpoint = mtron_ckpt.open(root / f"step-{step:08d}")
    expected = np.repeat(np.arange(COUNT) + value, 500).reshape(COUNT, 500)
    assert np.array_equal(checkpoint.read("param/w"), expected)
    assert np.array_equal(checkpoint.read("param/b"), np.full(300, value))
    assert mtron_ckpt.verify(root).ok


def saving_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("mtron-ckpt")]


@pytest.fixture(autouse=True)
def nothing_goes_on():
    yield
    for thread in saving_threads():
        thread.join(10)
    assert not saving_threads()


def test_writers_are_checked():
    for arguments, field in [
        ((0, 0, "s"), "count"),
        ((3, 3, "s"), "rank"),
        ((-1, 3, "s"), "rank"),
        ((0, 1, ""), "session"),
        ((0, 1, "s", 0.0), "timeout_seconds"),
    ]:
        with pytest.raises(ValueError, match=rf"writers\.{field}: "):
            Writers(*arguments)
    assert Writers(0, 2, "a").key == Writers(1, 2, "a").key != Writers(0, 2, "b").key


def test_a_step_is_there_for_all_writers(tmp_path, begin, together):
    outcomes = together(lambda rank: begin(rank).wait(), COUNT)
    assert outcomes == [tmp_path / "step-00000001"] * COUNT
    check(tmp_path)
    assert names(tmp_path) == ["LATEST", "step-00000001"]


def test_save_returns_when_all_have_come(begin, together):
    begun = []

    def late(rank):
        if rank == 2:
            time.sleep(0.1)
            assert begun == []
        handle = begin(rank)
        begun.append(rank)
        return handle.wait()

    together(late, COUNT)
    assert sorted(begun) == [0, 1, 2]


def test_bad_blocks_are_refused_on_every_writer_before_anything_is_written(
    tmp_path, begin, together, monkeypatch
):
    monkeypatch.setattr(data_file, "DataFileWriter", None)

    def overlap(rank):
        block = LocalArray(np.zeros((2, 4)), (4, 4), (rank, 0))
        return begin(rank, arrays={"param/x": block})

    def gap(rank):
        block = LocalArray(np.zeros((1, 4)), (4, 4), (rank, 0))
        return begin(rank, arrays={"param/x": block})

    def other_type(rank):
        block = LocalArray.whole(np.zeros(4, np.float64 if rank == 2 else np.float32))
        return begin(rank, arrays={"param/x": block})

    for attempt, message in [
        (overlap, r"param/x: .*of writer 0 and of .*of writer 1 overlap"),
        (gap, r"param/x: .*cover 12 of 16 elements, got blocks from writers 0, 1, 2"),
        (other_type, r"param/x: .*float32 \(4,\) from writer 0 and float64 \(4,\) from writer 2"),
    ]:
        for outcome in together(attempt, COUNT):
            assert type(outcome) is ValueError
            with pytest.raises(ValueError, match=message):
                raise outcome
        assert names(tmp_path) == []


def test_what_is_wrong_on_one_writer_is_raised_on_all(tmp_path, begin, together):
    def attempt(rank):
        arrays = {"param/x": LocalArray.whole(np.array([None]))} if rank == 1 else None
        return begin(rank, arrays=arrays).wait()

    outcomes = together(attempt, COUNT)
    for rank, outcome in enumerate(outcomes):
        prefix = "" if rank == 1 else "writer 1: "
        with pytest.raises(ValueError, match=rf"^{prefix}param/x: .*object"):
            raise outcome
    assert names(tmp_path) == []


def test_metadata_that_cannot_be_saved_counts_on_the_coordinator_only(tmp_path, together, session):
    def attempt(bad):
        def one(rank):
            metadata = Metadata(step=1, config={"x": object()} if rank == bad else {})
            writers = Writers(rank, COUNT, session)
            return mtron_ckpt.save(tmp_path, {}, metadata, writers=writers).wait()

        return together(one, COUNT)

    for outcome in attempt(0):
        with pytest.raises(ValueError, match=r"metadata\.config\.x"):
            raise outcome
    assert attempt(2) == [tmp_path / "step-00000001"] * COUNT


def test_who_comes_late_learns_of_the_failure(tmp_path, begin, together):
    """The one who failed is gone by then, and the last one tidies up."""
    with pytest.raises(ValueError, match="object"):
        begin(1, arrays={"param/x": LocalArray.whole(np.array([None]))})
    for rank in (2, 0):
        assert len(names(tmp_path)) == 1
        with pytest.raises(ValueError, match=r"^writer 1: .*object"):
            begin(rank)
    assert names(tmp_path) == []
    together(lambda rank: begin(rank).wait(), COUNT)
    check(tmp_path)


def test_a_step_can_be_saved_again_after_a_failure(tmp_path, begin, together):
    """Each writer tries again at once, while others may still be busy giving up."""

    def stubborn(rank):
        with pytest.raises(OSError, match="broken"):
            failing(begin, rank, 2)
        return begin(rank, value=7.0).wait()

    assert together(stubborn, COUNT) == [tmp_path / "step-00000001"] * COUNT
    check(tmp_path, value=7.0)
    assert names(tmp_path) == ["LATEST", "step-00000001"]


class Broken:
    """Values whose reading fails like a disk."""

    shape, dtype = (1, 500), np.dtype(float)

    def __array__(self, dtype=None, copy=None):
        raise OSError(errno.EIO, "broken source")


def failing(begin, rank, who, **options):
    arrays = None
    if rank == who:
        arrays = {"param/w": LocalArray(Broken(), (COUNT, 500), (rank, 0))}
    return begin(rank, arrays=arrays, **options).wait()


@pytest.mark.parametrize("who", range(COUNT))
def test_a_writer_that_fails_while_staging_is_named_to_the_others(tmp_path, begin, together, who):
    outcomes = together(lambda rank: failing(begin, rank, who), COUNT)
    for rank, outcome in enumerate(outcomes):
        prefix = "" if rank == who else f"writer {who}: "
        with pytest.raises(OSError, match=rf"{prefix}.*broken source") as raised:
            raise outcome
        assert raised.value.errno == errno.EIO
    assert names(tmp_path) == []


@pytest.mark.parametrize("who", range(COUNT))
def test_no_space_for_one_writer(tmp_path, begin, together, who, monkeypatch):
    """The message needs room, too; the writer's own data makes it."""

    def full(file, data, position):
        name = str(Path(f"/proc/self/fd/{file}").readlink())
        if name.endswith(f"writer-{who:04d}-000.zip"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_at(file, data, position)

    together(lambda rank: begin(rank).wait(), COUNT)
    monkeypatch.setattr(data_file, "write_at", full)
    outcomes = together(lambda rank: begin(rank, step=2).wait(), COUNT)
    for rank, outcome in enumerate(outcomes):
        prefix = "" if rank == who else f"writer {who}: "
        with pytest.raises(OSError, match=rf"{prefix}.*step-00000002: no space") as raised:
            raise outcome
        assert raised.value.errno == errno.ENOSPC
        assert " are free" in str(outcome)
    assert names(tmp_path) == ["LATEST", "step-00000001"]
    check(tmp_path)


def test_a_disk_too_full_for_all_shares_together(tmp_path, begin, together, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 10_000))
    outcomes = together(lambda rank: begin(rank).wait(), COUNT)
    assert [outcome.errno for outcome in outcomes] == [errno.ENOSPC] * COUNT
    assert "it needs" in str(outcomes[0])
    assert "writer 0: " in str(outcomes[2])
    assert names(tmp_path) == []


@pytest.mark.parametrize("replace", [False, True])
def test_a_commit_that_fails_is_told_to_all(tmp_path, begin, together, monkeypatch, replace):
    if replace:
        together(lambda rank: begin(rank).wait(), COUNT)

    def broken(*_):
        raise OSError(errno.EIO, "broken directory")

    monkeypatch.setattr(shared_step, "place_step", broken)
    outcomes = together(lambda rank: begin(rank, value=1.0, replace=replace).wait(), COUNT)
    for rank, outcome in enumerate(outcomes):
        with pytest.raises(OSError, match="broken directory" if rank == 0 else "writer 0: "):
            raise outcome
    assert names(tmp_path) == (["LATEST", "step-00000001"] if replace else [])
    monkeypatch.undo()
    together(lambda rank: begin(rank, value=2.0, replace=replace).wait(), COUNT)
    check(tmp_path, value=2.0)


def test_a_writer_that_is_interrupted_ends_the_save(tmp_path, begin, together):
    class Interrupted(Broken):
        def __array__(self, dtype=None, copy=None):
            raise KeyboardInterrupt

    def one(rank):
        block = LocalArray(Interrupted(), (COUNT, 500), (rank, 0))
        return begin(rank, arrays={"param/w": block} if rank == 2 else None).wait()

    outcomes = together(one, COUNT)
    assert isinstance(outcomes[2], KeyboardInterrupt)
    for outcome in outcomes[:2]:
        with pytest.raises(OSError, match=r"writer 2: gave up \(KeyboardInterrupt"):
            raise outcome
    assert names(tmp_path) == []


def test_a_step_that_is_there_is_refused_on_all(tmp_path, begin, together):
    together(lambda rank: begin(rank).wait(), COUNT)
    for outcome in together(lambda rank: begin(rank, value=1.0), COUNT):
        assert type(outcome) is FileExistsError
        assert "replace=True" in str(outcome)
    check(tmp_path)
    assert names(tmp_path) == ["LATEST", "step-00000001"]


def test_a_step_is_replaced_on_request(tmp_path, begin, together):
    for value in (0.0, 1.0, 2.0):
        outcomes = together(lambda rank, v=value: begin(rank, value=v, replace=True).wait(), COUNT)
        assert outcomes == [tmp_path / "step-00000001"] * COUNT
        check(tmp_path, value=value)
        assert names(tmp_path) == ["LATEST", "step-00000001"]


def test_writers_at_different_steps_are_told_so(tmp_path, begin, together):
    outcomes = together(lambda rank: begin(rank, step=5 + (rank == 1)), COUNT)
    for outcome in outcomes:
        assert type(outcome) is ValueError
        assert "metadata.step: must be the same" in str(outcome)
        for part in ("step-00000005", "step-00000006", "writer 1"):
            assert part in str(outcome)
    with CheckpointManager(tmp_path):
        assert names(tmp_path) == []


def test_who_does_not_come_in_time_is_named(tmp_path, begin, together):
    outcomes = together(lambda rank: begin(rank, timeout_seconds=0.3), COUNT - 1)
    for outcome in outcomes:
        with pytest.raises(OSError, match=r"writer 2 gave no sign for 0\.3 seconds"):
            raise outcome
    with pytest.raises(OSError, match="writer 2 gave no sign"):
        begin(2)  # too late
    assert names(tmp_path) == []


def test_who_dies_in_between_is_named_at_once(tmp_path, begin, together, session):
    """The lock is what counts: this one is released as by the end of a process."""
    dead = SharedStep(tmp_path, 1, Writers(2, COUNT, session))
    dead._board.close()
    os.close(dead._directory)
    for outcome in together(begin, COUNT - 1):
        with pytest.raises(OSError, match="writer 2 ended before doing a part of it"):
            raise outcome
    assert names(tmp_path) == []


def test_without_locks_all_works_but_death_is_noticed_by_time(
    tmp_path, begin, together, monkeypatch, session
):
    def no_locks(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    together(lambda rank: begin(rank).wait(), COUNT)
    check(tmp_path)
    outcomes = together(lambda rank: failing(begin, rank, 1, step=2), COUNT)
    assert all("broken source" in str(outcome) for outcome in outcomes)
    dead = SharedStep(tmp_path, 3, Writers(2, COUNT, session))
    dead._board.close()
    os.close(dead._directory)
    for outcome in together(lambda rank: begin(rank, step=3, timeout_seconds=0.3), COUNT - 1):
        with pytest.raises(OSError, match="writer 2 gave no sign"):
            raise outcome
    together(lambda rank: begin(rank, step=4).wait(), COUNT)
    assert mtron_ckpt.open(tmp_path).step == 4


def test_an_attempt_that_is_not_over_is_waited_for(tmp_path, session):
    """For instance two processes that believe to be the same writer."""
    first = SharedStep(tmp_path, 1, Writers(1, COUNT, session))
    with pytest.raises(OSError, match="an earlier save of this step as writer 1"):
        mtron_ckpt.save(tmp_path, {}, Metadata(step=1), writers=Writers(1, COUNT, session, 0.2))
    first.close(OSError(5, "x"))


def test_a_job_started_again_under_the_same_session(tmp_path, begin, together, session):
    """That is not allowed, but what the dead ones have left is recognized as old."""
    for rank in range(COUNT):
        dead = SharedStep(tmp_path, 1, Writers(rank, COUNT, session))
        (dead.path / "data").mkdir(exist_ok=True)
        (dead.path / "data" / f"writer-{rank:04d}-000.zip").write_bytes(b"half")
        dead._board.close()
        os.close(dead._directory)
    together(lambda rank: begin(rank).wait(), COUNT)
    check(tmp_path)
    assert names(tmp_path) == ["LATEST", "step-00000001"]


def managers(tmp_path, session, stack: ExitStack, **options):
    return [
        stack.enter_context(
            CheckpointManager(tmp_path, writers=Writers(rank, COUNT, session, 60), **options)
        )
        for rank in range(COUNT)
    ]


def row_arrays(rank: int, value: float = 0.0):
    return {
        "param/w": LocalArray(np.full((1, 500), rank + value), (COUNT, 500), (rank, 0)),
        "param/b": LocalArray.whole(np.full(300, value)),
    }


def test_later_saves_do_not_wait_for_the_others_plans(tmp_path, session, together, monkeypatch):
    read = []
    real = Coordination.read

    def spy(self, name, form):
        read.append(name)
        return real(self, name, form)

    monkeypatch.setattr(Coordination, "read", spy)
    with ExitStack() as stack:
        mine = managers(tmp_path, session, stack, keep_last=2)
        together(lambda r: mine[r].save(row_arrays(r), Metadata(step=1)).wait(), COUNT)
        assert sum(name.startswith("plan-") for name in read) == COUNT * COUNT
        read.clear()
        for step in (2, 3):
            handles = []
            for rank in (2, 1, 0):  # one after the other: nobody waits for anybody
                arrays = row_arrays(rank, float(step))
                handles.append(mine[rank].save(arrays, Metadata(step=step)))
                assert (rank == 0) or not handles[-1].done
            for handle in handles:
                assert handle.wait() == tmp_path / f"step-{step:08d}"
            check(tmp_path, step, float(step))
        assert read
        assert not [name for name in read if name.startswith("plan-")]
        assert [manager.steps() for manager in mine] == [[2, 3]] * COUNT


def test_a_change_of_all_blocks_is_agreed_upon_again(tmp_path, session, together):
    with ExitStack() as stack:
        mine = managers(tmp_path, session, stack)
        together(lambda r: mine[r].save(row_arrays(r), Metadata(step=1)).wait(), COUNT)
        columns = [
            {"param/w": LocalArray(np.full((9, 2), r), (9, 2 * COUNT), (0, 2 * r))}
            for r in range(COUNT)
        ]
        together(lambda r: mine[r].save(columns[r], Metadata(step=2)).wait(), COUNT)
    assert mtron_ckpt.verify(tmp_path).ok
    assert mtron_ckpt.open(tmp_path).read("param/w")[4].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_change_on_one_writer_only_is_refused_once(tmp_path, session, together):
    """Its own new array would have been saved; but replicas could have changed hands."""
    with ExitStack() as stack:
        mine = managers(tmp_path, session, stack)
        together(lambda r: mine[r].save(row_arrays(r), Metadata(step=1)).wait(), COUNT)

        def more(rank):
            extra = {"param/extra": LocalArray.whole(np.arange(10_000))} if rank == 1 else {}
            return row_arrays(rank) | extra

        for outcome in together(lambda r: mine[r].save(more(r), Metadata(step=2)).wait(), COUNT):
            with pytest.raises(ValueError, match=r"changed .*not on all .*from writer 1 than"):
                raise outcome
        assert names(tmp_path) == ["LATEST", "step-00000001"]
        for manager in mine:
            with pytest.raises(ValueError, match="not on all"):
                manager.wait()
        together(lambda r: mine[r].save(more(r), Metadata(step=2)).wait(), COUNT)
        assert mtron_ckpt.open(tmp_path).read("param/extra")[99] == 99
        check(tmp_path, 2)


def test_only_writer_0_cleans_and_spares_its_own_session(tmp_path, session):
    writers = [Writers(rank, COUNT, session) for rank in range(COUNT)]
    left = tmp_path / "step-00000009.tmp-0123456789ab"
    own = tmp_path / f"step-00000009.tmp-{writers[0].key}"
    for path in (left, own):
        path.mkdir()
    CheckpointManager(tmp_path, writers=writers[1])
    assert names(tmp_path) == [left.name, own.name] or names(tmp_path) == [own.name, left.name]
    CheckpointManager(tmp_path, writers=writers[0])
    assert names(tmp_path) == [own.name]
    CheckpointManager(tmp_path, writers=Writers(0, COUNT, "another"))
    assert names(tmp_path) == []


def test_a_cleaner_that_comes_first_does_not_disturb(tmp_path, begin, together, monkeypatch):
    """It may delete the directory between its making and the first lock, again and again."""
    stop = threading.Event()

    def clean():
        while not stop.is_set():
            CheckpointManager(tmp_path)

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    try:
        for step in range(1, 6):
            outcomes = together(lambda rank, s=step: begin(rank, step=s).wait(), COUNT)
            assert outcomes == [tmp_path / f"step-{step:08d}"] * COUNT
    finally:
        stop.set()
        cleaner.join()
    check(tmp_path, 5)


def test_a_failed_process_does_not_wait_for_who_never_comes(tmp_path, session, together, caplog):
    with ExitStack() as stack:
        mine = managers(tmp_path, session, stack)
        together(lambda r: mine[r].save(row_arrays(r), Metadata(step=1)).wait(), COUNT)
        mine[0].save(row_arrays(0), Metadata(step=2))
        waiting = mine[1].save(row_arrays(1), Metadata(step=2))
        mine[0].abandon()
        assert "given up before writer 2 had come" in caplog.text
        with pytest.raises(OSError, match=r"writer 0: .*given up before writer 2 had come"):
            waiting.wait()
        mine[1].abandon()
        with pytest.raises(OSError, match="writer 0: "):
            mine[2].save(row_arrays(2), Metadata(step=2)).wait()
    assert names(tmp_path) == ["LATEST", "step-00000001"]


def test_a_failed_process_finishes_what_all_have_come_to(tmp_path, session, together, monkeypatch):
    gate = threading.Event()
    with ExitStack() as stack:
        mine = managers(tmp_path, session, stack)
        together(lambda r: mine[r].save(row_arrays(r), Metadata(step=1)).wait(), COUNT)
        monkeypatch.setattr(data_file, "write_at", lambda *a: (gate.wait(30), write_at(*a)))
        handles = [mine[r].save(row_arrays(r), Metadata(step=2)) for r in range(COUNT)]
        threading.Timer(0.1, gate.set).start()
        with pytest.raises(RuntimeError, match="training"), mine[2]:
            raise RuntimeError("training has failed")
        mine[0].abandon()
        assert handles[0].wait() == tmp_path / "step-00000002"
    check(tmp_path, 2)


def test_presence_as_locks_tell_it(tmp_path):
    (tmp_path / "here").mkdir()
    one, two = (Coordination(tmp_path / "here", rank) for rank in range(2))
    assert one.presence(1) is Presence.ABSENT
    assert two.enter()
    assert one.presence(1) is two.presence(1) is Presence.THERE
    assert not two.enter(), "a writer comes only once"
    (tmp_path / "here").rename(tmp_path / "there")
    assert one.presence(1) is Presence.THERE
    two.leave()
    assert one.presence(1) is Presence.GONE
    one.close()
    two.close()


def test_patience_ends_without_signs_only(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(coordination.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(coordination.time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    patience = coordination.Patience(1.0, 4)
    assert not patience.tried
    while clock[0] < 0.9:
        assert patience.pause("a")
    assert patience.tried
    assert patience.pause("b")  # a sign: the second begins anew
    start = clock[0]
    while patience.pause("b"):
        assert clock[0] <= 2.0
    assert 1.0 <= clock[0] - start + 0.2 <= 1.4
