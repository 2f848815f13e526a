"""Managers of several writers: plans that stay, cleaning, the end of a failed process."""

import threading
from contextlib import ExitStack

import numpy as np
import pytest

import mtron_ckpt
from mtron_ckpt import (
    CheckpointManager,
    LocalArray,
    Metadata,
    Writers,
    data_file,
)
from mtron_ckpt.coordination import Coordination
from mtron_ckpt.storage import write_at


def managers(trio, stack: ExitStack, **options):
    return [
        stack.enter_context(CheckpointManager(trio.root, writers=trio.writers(rank), **options))
        for rank in range(trio.count)
    ]


def test_later_saves_do_not_wait_for_the_others_plans(trio, monkeypatch):
    read = []
    real = Coordination.read

    def spy(self, name, form):
        read.append(name)
        return real(self, name, form)

    monkeypatch.setattr(Coordination, "read", spy)
    with ExitStack() as stack:
        mine = managers(trio, stack, keep_last=2)
        trio.together(lambda r: mine[r].save(trio.arrays(r), Metadata(step=1)).wait())
        assert sum(name.startswith("plan-") for name in read) == trio.count * trio.count
        read.clear()
        for step in (2, 3):
            handles = []
            for rank in (2, 1, 0):  # one after the other: nobody waits for anybody
                arrays = trio.arrays(rank, float(step))
                handles.append(mine[rank].save(arrays, Metadata(step=step)))
                assert (rank == 0) or not handles[-1].done
            for handle in handles:
                assert handle.wait() == trio.root / f"step-{step:08d}"
            trio.check(step, float(step))
        assert read
        assert not [name for name in read if name.startswith("plan-")]
        assert [manager.steps() for manager in mine] == [[2, 3]] * trio.count


def test_a_change_of_all_blocks_is_agreed_upon_again(trio):
    with ExitStack() as stack:
        mine = managers(trio, stack)
        trio.together(lambda r: mine[r].save(trio.arrays(r), Metadata(step=1)).wait())
        columns = [
            {"param/w": LocalArray(np.full((9, 2), r), (9, 2 * trio.count), (0, 2 * r))}
            for r in range(trio.count)
        ]
        trio.together(lambda r: mine[r].save(columns[r], Metadata(step=2)).wait())
    assert mtron_ckpt.verify(trio.root).ok
    assert mtron_ckpt.open(trio.root).read("param/w")[4].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_change_on_one_writer_only_is_refused_once(trio):
    """Its own new array would have been saved; but replicas could have changed hands."""
    with ExitStack() as stack:
        mine = managers(trio, stack)
        trio.together(lambda r: mine[r].save(trio.arrays(r), Metadata(step=1)).wait())

        def more(rank):
            extra = {"param/extra": LocalArray.whole(np.arange(10_000))} if rank == 1 else {}
            return trio.arrays(rank) | extra

        for outcome in trio.together(
            lambda r: mine[r].save(more(r), Metadata(step=2)).wait(), trio.count
        ):
            with pytest.raises(ValueError, match=r"changed .*not on all .*from writer 1 than"):
                raise outcome
        assert trio.names() == ["LATEST", "step-00000001"]
        for manager in mine:
            with pytest.raises(ValueError, match="not on all"):
                manager.wait()
        trio.together(lambda r: mine[r].save(more(r), Metadata(step=2)).wait())
        assert mtron_ckpt.open(trio.root).read("param/extra")[99] == 99
        trio.check(2)


def test_only_writer_0_cleans_and_spares_its_own_session(trio):
    writers = [trio.writers(rank) for rank in range(trio.count)]
    left = trio.root / "step-00000009.tmp-0123456789ab"
    own = trio.root / f"step-00000009.tmp-{writers[0].key}"
    for path in (left, own):
        path.mkdir()
    CheckpointManager(trio.root, writers=writers[1])
    assert trio.names() == [left.name, own.name] or trio.names() == [own.name, left.name]
    CheckpointManager(trio.root, writers=writers[0])
    assert trio.names() == [own.name]
    CheckpointManager(trio.root, writers=Writers(0, trio.count, "another"))
    assert trio.names() == []


def test_a_cleaner_that_comes_first_does_not_disturb(trio, monkeypatch):
    """It may delete the directory between its making and the first lock, again and again."""
    stop = threading.Event()

    def clean():
        while not stop.is_set():
            CheckpointManager(trio.root)

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    try:
        for step in range(1, 6):
            outcomes = trio.together(lambda rank, s=step: trio.begin(rank, step=s).wait())
            assert outcomes == [trio.root / f"step-{step:08d}"] * trio.count
    finally:
        stop.set()
        cleaner.join()
    trio.check(5)


def test_a_failed_process_does_not_wait_for_who_never_comes(trio, caplog):
    with ExitStack() as stack:
        mine = managers(trio, stack)
        trio.together(lambda r: mine[r].save(trio.arrays(r), Metadata(step=1)).wait())
        mine[0].save(trio.arrays(0), Metadata(step=2))
        waiting = mine[1].save(trio.arrays(1), Metadata(step=2))
        mine[0].abandon()
        assert "given up before writer 2 had come" in caplog.text
        with pytest.raises(OSError, match=r"writer 0: .*given up before writer 2 had come"):
            waiting.wait()
        mine[1].abandon()
        with pytest.raises(OSError, match="writer 0: "):
            mine[2].save(trio.arrays(2), Metadata(step=2)).wait()
    assert trio.names() == ["LATEST", "step-00000001"]


def test_a_failed_process_finishes_what_all_have_come_to(trio, monkeypatch):
    gate = threading.Event()
    with ExitStack() as stack:
        mine = managers(trio, stack)
        trio.together(lambda r: mine[r].save(trio.arrays(r), Metadata(step=1)).wait())
        monkeypatch.setattr(data_file, "write_at", lambda *a: (gate.wait(30), write_at(*a)))
        handles = [mine[r].save(trio.arrays(r), Metadata(step=2)) for r in range(trio.count)]
        threading.Timer(0.1, gate.set).start()
        with pytest.raises(RuntimeError, match="training"), mine[2]:
            raise RuntimeError("training has failed")
        mine[0].abandon()
        assert handles[0].wait() == trio.root / "step-00000002"
    trio.check(2)
