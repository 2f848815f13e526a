import json
import re
import threading
import time

import pytest
import torch
import torch.distributed as dist

from mtron_parallel.stacks import place_of_error, place_of_thread
from mtron_parallel.watch import Watch


def slow_read(store):
    while not store.check(["asked"]):
        time.sleep(0.01)


def start():
    """A started watch of this rank, when all ranks have theirs; and the store."""
    store = dist.distributed_c10d._get_default_store()
    watch = Watch(store, dist.get_rank(), dist.get_world_size())
    watch.start()
    dist.barrier()
    return watch, store


def ask_all():
    """Rank 0 asks; rank 1 reads, ranks 2 and 3 wait in a receive of gloo."""
    watch, store = start()
    text = None
    if dist.get_rank() == 1:
        slow_read(store)
    else:
        watch.entered("all_reduce over dp")
        if dist.get_rank() == 0:
            text = watch.explain(60.0)
            store.set("asked", "")
            for rank in (2, 3):
                dist.send(torch.ones(1), rank)
        else:
            dist.recv(torch.ones(1), 0)
        watch.left()
    watch.stop()
    return text


def ask_some(ranks, second):
    """Ranks 0 and 1 wait, 1 in the collective `second`; rank 2 reads."""
    watch, store = start()
    text = None
    if dist.get_rank() == 2:
        slow_read(store)
    else:
        watch.entered("all_reduce over tp" if dist.get_rank() == 0 else second)
        if dist.get_rank() == 0:
            text = watch.explain(1.5, ranks)
            store.set("asked", "")
        else:
            store.wait(["asked"])
    dist.barrier()
    watch.stop()
    return text


def ask_together():
    watch, _ = start()
    watch.entered("all_gather over dp")
    text = watch.explain(2.0)
    dist.barrier()
    watch.stop()
    return text


def ask_absent():
    """Rank 1 never had a watch, rank 2 has left the job, rank 3 has given up in a collective."""
    store = dist.distributed_c10d._get_default_store()
    rank = dist.get_rank()
    seconds = text = None
    if rank != 1:
        watch = Watch(store, rank, 4)
        watch.start()
        if rank != 2:
            watch.entered("all_reduce over dp")
        if rank != 0:
            watch.stop()
    dist.barrier()
    if rank == 0:
        start = time.monotonic()
        text = watch.explain(1.0, answer_seconds=0.5)
        seconds = time.monotonic() - start
        watch.stop()
    return text, seconds


def start_again():
    """Three watches in turn on one store, each of which asks."""
    texts = []
    for _ in range(3):
        watch, _ = start()
        dist.barrier()
        texts.append(watch.explain(0.0))
        dist.barrier()
        watch.stop()
        texts.append([thread.name for thread in threading.enumerate() if "mtron" in thread.name])
        dist.barrier()
    return texts


def test_the_rank_that_keeps_the_others_waiting_is_named_with_its_place(workers):
    text = workers.run(ask_all, 4)[0]
    assert re.fullmatch(
        r"after 60 s rank 1 is not in a collective: it is at test_watch\.py:\d+ in slow_read; "
        r"ranks 0, 2, 3 wait in all_reduce over dp for [\d.]+ s",
        text,
    )


def test_the_cause_is_looked_for_outside_of_ranks_that_wait_for_different_things(workers):
    text = workers.run(ask_some, 3, [0, 1], "all_gather over dp")[0]
    assert re.fullmatch(
        r"after 1\.5 s rank 2 is not in a collective: it is at test_watch\.py:\d+ in slow_read; "
        r"rank 1 waits in all_gather over dp for [\d.]+ s; "
        r"rank 0 waits in all_reduce over tp for [\d.]+ s",
        text,
    )


def test_others_are_not_blamed_when_all_ranks_of_a_collective_are_in_it(workers):
    text = workers.run(ask_some, 3, [0, 1], "all_reduce over tp")[0]
    assert re.fullmatch(r"after 1\.5 s ranks 0, 1 wait in all_reduce over tp for [\d.]+ s", text)


def test_all_ranks_may_ask_at_once(workers):
    texts = workers.run(ask_together, 3)
    for text in texts:
        assert re.fullmatch(r"after 2 s ranks 0-2 wait in all_gather over dp for [\d.]+ s", text)


def test_ranks_that_do_not_answer_are_named(workers):
    text, seconds = workers.run(ask_absent, 4)[0]
    assert re.fullmatch(
        r"after 1 s rank 2 has left the job; "
        r"rank 1 does not answer and may have died or been stopped; "
        r"rank 0 waits in all_reduce over dp for [\d.]+ s; "
        r"rank 3 has failed in all_reduce over dp for [\d.]+ s",
        text,
    )
    assert 0.5 <= seconds < 5


def test_a_watch_leaves_no_thread_and_no_answers_for_the_next(workers):
    for texts in workers.run(start_again, 2):
        for text, threads in zip(texts[::2], texts[1::2], strict=True):
            assert "ranks 0, 1 are not in a collective: they are at test_watch.py:" in text
            assert threads == []


def test_a_store_that_has_ended_is_named():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with Watch(store, 0, 1) as watch:
        assert " is not in a collective: it is at test_watch.py:" in watch.explain(1.0)
        del store
        assert watch.explain(1.0) == (
            "after 1 s the job's store does not answer: the process that holds it has ended"
        )


def test_places_are_outside_of_libraries():
    def read(text):
        return json.loads(text)

    def multiply():
        return torch.nn.functional.multi_head_attention_forward(*[None] * 13)

    for function, arguments in ((read, ["{"]), (multiply, [])):
        with pytest.raises(Exception) as caught:
            function(*arguments)
        line = function.__code__.co_firstlineno + 1
        assert place_of_error(caught.value) == f"test_watch.py:{line} in {function.__name__}"


def test_the_place_of_a_thread():
    done = threading.Event()

    def wait_here():
        done.wait()

    thread = threading.Thread(target=wait_here)
    thread.start()
    try:
        line = wait_here.__code__.co_firstlineno + 1
        assert place_of_thread(thread.ident) == f"test_watch.py:{line} in wait_here"
    finally:
        done.set()
        thread.join()
    assert place_of_thread(thread.ident) is None
    assert place_of_thread(None) is None
