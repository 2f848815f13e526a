import json
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtron_data import GPTDataset, Loader

SEQ_LEN = 32


@pytest.fixture(scope="module")
def stream(prepared):
    return GPTDataset(prepared, SEQ_LEN, seed=1)


@pytest.fixture(scope="module")
def sequential(prepared):
    return GPTDataset(prepared, SEQ_LEN, order="sequential")


def take(loader, count):
    with loader:
        return [next(loader) for _ in range(count)]


def same(one, other):
    return (
        all(np.array_equal(one[name], other[name]) for name in one) and one.keys() == other.keys()
    )


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_batches_come_in_order(stream, prefetch):
    for number, batch in enumerate(take(Loader(stream, 3, prefetch=prefetch), 7)):
        assert same(batch, stream.batch(range(3 * number, 3 * number + 3)))


@given(before=st.integers(0, 12), sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_resumes_at_any_sample(stream, before, sizes):
    first = Loader(stream, sizes[0])
    take(first, before)
    state = json.loads(json.dumps(first.state()))
    assert state["cursor"] == first.cursor == before * sizes[0]
    assert len(json.dumps(state)) < 1000
    (batch,) = take(Loader(stream, sizes[1], state=state), 1)
    assert batch["sample_ids"].tolist() == list(range(state["cursor"], state["cursor"] + sizes[1]))


def test_resumes_across_epochs_with_the_same_bits(stream):
    start = stream.samples_per_epoch - 7
    whole = take(Loader(stream, 5, cursor=start), 6)
    with Loader(stream, 5, cursor=start) as loader:
        head = [next(loader) for _ in range(2)]
        state = loader.state()
    tail = take(Loader(stream, 5, state=state), 4)
    assert all(same(a, b) for a, b in zip(whole, head + tail, strict=True))


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_several_ranks_take_the_samples_of_one_in_its_order(stream, ranks, prefetch):
    one = np.concatenate([batch["sample_ids"] for batch in take(Loader(stream, 2), 12)])
    loaders = [
        Loader(stream, 2, prefetch=prefetch, dp_rank=rank, dp_size=ranks) for rank in range(ranks)
    ]
    rounds = zip(*(take(loader, 12 // ranks) for loader in loaders), strict=True)
    order = [batch["sample_ids"] for batches in rounds for batch in batches]
    assert np.array_equal(np.concatenate(order), one)
    assert all(loader.state() == loaders[0].state() for loader in loaders)
    assert loaders[0].cursor == 24
    (after,) = take(Loader(stream, 2, state=loaders[-1].state()), 1)
    assert after["sample_ids"].tolist() == [24, 25]


def test_a_rank_reads_its_own_samples_only(stream, monkeypatch):
    read = []
    batch = stream.batch
    monkeypatch.setattr(stream, "batch", lambda indices: read.extend(indices) or batch(indices))
    take(Loader(stream, 2, prefetch=0, dp_rank=1, dp_size=3), 3)
    assert read == [2, 3, 8, 9, 14, 15]


@settings(max_examples=20)
@given(ranks=st.integers(1, 5), size=st.integers(1, 9), prefetch=st.integers(0, 2))
def test_ranks_share_a_finite_dataset_to_its_end(sequential, ranks, size, prefetch):
    seen = []
    for rank in range(ranks):
        with Loader(sequential, size, prefetch=prefetch, dp_rank=rank, dp_size=ranks) as loader:
            seen += [batch["sample_ids"] for batch in loader]
            assert loader.cursor == len(sequential)
    assert sorted(np.concatenate(seen)) == list(range(len(sequential)))


@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_finite_dataset_ends(sequential, prefetch):
    loader = Loader(sequential, 7, prefetch=prefetch)
    batches = list(loader)
    assert [len(batch["tokens"]) for batch in batches[:-1]] == [7] * (len(sequential) // 7)
    ids = np.concatenate([batch["sample_ids"] for batch in batches])
    assert ids.tolist() == list(range(len(sequential)))
    assert loader.cursor == len(sequential)
    with pytest.raises(StopIteration):
        next(loader)
    assert list(Loader(sequential, 7, state=loader.state())) == []
    loader.close()


def test_chosen_samples(sequential):
    chosen = np.array([5, 3, 9, 9, 0])
    with Loader(sequential, 2, indices=chosen) as loader:
        first = next(loader)
        state = loader.state()
        assert [first["sample_ids"].tolist()] + [b["sample_ids"].tolist() for b in loader] == [
            [5, 3],
            [9, 9],
            [0],
        ]
    again = Loader(sequential, 2, indices=[5, 3, 9, 9, 0], state=state)
    assert [b["sample_ids"].tolist() for b in again] == [[9, 9], [0]]
    again.close()
    with pytest.raises(ValueError, match=r"state\.indices: the state was saved with"):
        Loader(sequential, 2, indices=[5, 3], state=state)
    with pytest.raises(ValueError, match=r"state\.indices"):
        Loader(sequential, 2, state=state)


def test_a_state_of_something_else_is_refused(stream, prepared, write_pair):
    state = Loader(stream, 2, cursor=10).state()
    others = {
        "seed": GPTDataset(prepared, SEQ_LEN, seed=2),
        "seq_len": GPTDataset(prepared, SEQ_LEN + 1, seed=1),
        "order": GPTDataset(prepared, SEQ_LEN, seed=1, order="sequential"),
        "dataset": GPTDataset(write_pair([list(range(200))]), SEQ_LEN, seed=1),
    }
    for name, dataset in others.items():
        with pytest.raises(ValueError, match=rf"state\.{name}: the state was saved with .*, got"):
            Loader(dataset, 2, state=state)
    for patch, message in (
        ({"version": 2}, r"state\.version: must be 1, got 2"),
        ({"cursor": -1}, r"state\.cursor: must be a number of samples, got -1"),
        ({"cursor": "10"}, r"state\.cursor"),
        ({"cursor": True}, r"state\.cursor"),
        ({"unknown": 1}, r"state\.unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            Loader(stream, 2, state={**state, **patch})
    with pytest.raises(ValueError, match=r"state\.version: must be 1, got None"):
        Loader(stream, 2, state={})


def test_wrong_arguments(stream, sequential):
    for arguments, message in (
        ({"micro_batch_size": 0}, "micro_batch_size: must be at least 1, got 0"),
        ({"cursor": -1}, "cursor: must be at least 0, got -1"),
        ({"prefetch": -1}, "prefetch: must be at least 0"),
        ({"dp_size": 0}, "dp_size: must be at least 1, got 0"),
        ({"dp_rank": 2, "dp_size": 2}, "dp_rank: must be less than dp_size = 2, got 2"),
        ({"cursor": 3, "state": Loader(stream, 2).state()}, "cursor: is part of the state"),
    ):
        with pytest.raises(ValueError, match=message):
            Loader(stream, **{"micro_batch_size": 2, **arguments})
    for wrong in (-1, len(sequential)):
        with pytest.raises(ValueError, match=rf"indices: must be samples .*, got {wrong}"):
            Loader(sequential, 2, indices=[0, wrong])
    with pytest.raises(ValueError, match="cursor: is beyond the"):
        Loader(sequential, 2, cursor=len(sequential) + 1)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_does_not_lose_a_batch(sequential, monkeypatch, prefetch):
    broken = threading.Event()
    batch = sequential.batch

    def sometimes(indices):
        if broken.is_set():
            raise OSError("the disk is gone")
        return batch(indices)

    monkeypatch.setattr(sequential, "batch", sometimes)
    with Loader(sequential, 2, prefetch=prefetch) as loader:
        next(loader)
        broken.set()
        with pytest.raises(OSError, match="the disk is gone"):
            for _ in range(prefetch + 1):
                next(loader)
        cursor = loader.cursor
        broken.clear()
        assert next(loader)["sample_ids"].tolist() == [cursor, cursor + 1]


def test_reads_ahead_in_one_thread_that_ends(stream):
    loader = Loader(stream, 2, prefetch=4)
    next(loader)
    assert len(loader._pending) == 4
    names = [thread.name for thread in threading.enumerate()]
    assert sum(name.startswith("mtron-data-prefetch") for name in names) == 1
    state = loader.state()
    loader.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("mtron-data-prefetch")]
    assert loader.state() == state
    with pytest.raises(ValueError, match="loader: is closed"):
        next(loader)
    loader.close()
