"""How several writers come together, agree and commit."""

import os
import time

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
)
from mtron_ckpt.coordination import Coordination, Presence
from mtron_ckpt.shared_step import SharedStep


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


def test_a_step_is_there_for_all_writers(trio):
    outcomes = trio.together(lambda rank: trio.begin(rank).wait())
    assert outcomes == [trio.root / "step-00000001"] * trio.count
    trio.check()
    assert trio.names() == ["LATEST", "step-00000001"]


def test_save_returns_when_all_have_come(trio):
    begun = []

    def late(rank):
        if rank == 2:
            time.sleep(0.1)
            assert begun == []
        handle = trio.begin(rank)
        begun.append(rank)
        return handle.wait()

    trio.together(late)
    assert sorted(begun) == [0, 1, 2]


def test_bad_blocks_are_refused_on_every_writer_before_anything_is_written(trio, monkeypatch):
    monkeypatch.setattr(data_file, "DataFileWriter", None)

    def overlap(rank):
        block = LocalArray(np.zeros((2, 4)), (4, 4), (rank, 0))
        return trio.begin(rank, arrays={"param/x": block})

    def gap(rank):
        block = LocalArray(np.zeros((1, 4)), (4, 4), (rank, 0))
        return trio.begin(rank, arrays={"param/x": block})

    def other_type(rank):
        block = LocalArray.whole(np.zeros(4, np.float64 if rank == 2 else np.float32))
        return trio.begin(rank, arrays={"param/x": block})

    for attempt, message in [
        (overlap, r"param/x: .*of writer 0 and of .*of writer 1 overlap"),
        (gap, r"param/x: .*cover 12 of 16 elements, got blocks from writers 0, 1, 2"),
        (other_type, r"param/x: .*float32 \(4,\) from writer 0 and float64 \(4,\) from writer 2"),
    ]:
        for outcome in trio.together(attempt):
            assert type(outcome) is ValueError
            with pytest.raises(ValueError, match=message):
                raise outcome
        assert trio.names() == []


def test_metadata_that_cannot_be_saved_counts_on_the_coordinator_only(trio):
    def attempt(bad):
        def one(rank):
            metadata = Metadata(step=1, config={"x": object()} if rank == bad else {})
            writers = trio.writers(rank)
            return mtron_ckpt.save(trio.root, {}, metadata, writers=writers).wait()

        return trio.together(one)

    for outcome in attempt(0):
        with pytest.raises(ValueError, match=r"metadata\.config\.x"):
            raise outcome
    assert attempt(2) == [trio.root / "step-00000001"] * trio.count


def test_a_step_that_is_there_is_refused_on_all(trio):
    trio.together(lambda rank: trio.begin(rank).wait())
    for outcome in trio.together(lambda rank: trio.begin(rank, value=1.0)):
        assert type(outcome) is FileExistsError
        assert "replace=True" in str(outcome)
    trio.check()
    assert trio.names() == ["LATEST", "step-00000001"]


def test_a_step_is_replaced_on_request(trio):
    for value in (0.0, 1.0, 2.0):
        outcomes = trio.together(
            lambda rank, v=value: trio.begin(rank, value=v, replace=True).wait(), trio.count
        )
        assert outcomes == [trio.root / "step-00000001"] * trio.count
        trio.check(value=value)
        assert trio.names() == ["LATEST", "step-00000001"]


def test_writers_at_different_steps_are_told_so(trio):
    outcomes = trio.together(lambda rank: trio.begin(rank, step=5 + (rank == 1)))
    for outcome in outcomes:
        assert type(outcome) is ValueError
        assert "metadata.step: must be the same" in str(outcome)
        for part in ("step-00000005", "step-00000006", "writer 1"):
            assert part in str(outcome)
    with CheckpointManager(trio.root):
        assert trio.names() == []


def test_an_attempt_that_is_not_over_is_waited_for(trio):
    """For instance two processes that believe to be the same writer."""
    first = SharedStep(trio.root, 1, trio.writers(1))
    with pytest.raises(OSError, match="an earlier save of this step as writer 1"):
        mtron_ckpt.save(trio.root, {}, Metadata(step=1), writers=trio.writers(1, 0.2))
    first.close(OSError(5, "x"))


def test_a_job_started_again_under_the_same_session(trio):
    """That is not allowed, but what the dead ones have left is recognized as old."""
    for rank in range(trio.count):
        dead = SharedStep(trio.root, 1, trio.writers(rank))
        (dead.path / "data").mkdir(exist_ok=True)
        (dead.path / "data" / f"writer-{rank:04d}-000.zip").write_bytes(b"half")
        dead._board.close()
        os.close(dead._directory)
    trio.together(lambda rank: trio.begin(rank).wait())
    trio.check()
    assert trio.names() == ["LATEST", "step-00000001"]


def test_presence_as_locks_tell_it(trio):
    (trio.root / "here").mkdir()
    one, two = (Coordination(trio.root / "here", rank) for rank in range(2))
    assert one.presence(1) is Presence.ABSENT
    assert two.enter()
    assert one.presence(1) is two.presence(1) is Presence.THERE
    assert not two.enter(), "a writer comes only once"
    (trio.root / "here").rename(trio.root / "there")
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
