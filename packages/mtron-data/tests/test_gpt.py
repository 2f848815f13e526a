import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtron_data import GPTDataset, IndexedWriter, TokenDataset, load_tokenizer


def rows_of(dataset, pieces):
    tokens = dataset.tokens.tokens
    return np.concatenate([tokens[start:stop] for start, stop in pieces]).astype(np.int64)


@pytest.mark.parametrize("order", ["stream", "sequential"])
def test_batch(prepared, order):
    dataset = GPTDataset(prepared, 32, seed=1, order=order)
    last = dataset.samples_per_epoch - 1
    batch = dataset.batch([0, 5, last])
    assert {
        name: (value.shape, value.dtype.name)
        for name, value in batch.items()
        if name != "max_seqlen"
    } == {
        "tokens": ((3, 32), "int64"),
        "labels": ((3, 32), "int64"),
        "loss_mask": ((3, 32), "float32"),
        "positions": ((3, 32), "int64"),
        "sample_ids": ((3,), "int64"),
        "cu_seqlens": (batch["cu_seqlens"].shape, "int32"),
    }
    assert type(batch["max_seqlen"]) is int
    assert all(value.flags.c_contiguous for value in list(batch.values())[:-1])
    assert batch["sample_ids"].tolist() == [0, 5, last]
    for row, pieces in enumerate(dataset._order.pieces([0, 5, last])):
        expected = rows_of(dataset, pieces)
        count = len(expected) - 1
        assert batch["tokens"][row, : count + 1].tolist() == expected[:32].tolist()
        assert batch["labels"][row, :count].tolist() == expected[1:].tolist()
        assert batch["loss_mask"][row].tolist() == [1.0] * count + [0.0] * (32 - count)
        assert batch["positions"][row].tolist() == list(range(32))


@pytest.mark.parametrize("order", ["stream", "sequential"])
def test_labels_are_the_next_tokens(prepared, order):
    batch = GPTDataset(prepared, 32, seed=1, order=order).batch([0, 1, 2])
    assert np.array_equal(batch["labels"][:, :-1], batch["tokens"][:, 1:])
    if order == "sequential":
        assert np.array_equal(batch["labels"][:-1, -1], batch["tokens"][1:, 0])


def test_one_sample_is_a_row_of_a_batch(prepared):
    dataset = GPTDataset(prepared, 32, seed=1)
    batch, sample = dataset.batch([7, 8]), dataset[8]
    for name in ("tokens", "labels", "loss_mask", "positions"):
        assert np.array_equal(batch[name][1], sample[name])
    assert sample["sample_id"] == 8
    own = batch["cu_seqlens"][batch["cu_seqlens"] >= 32] - 32
    assert sample["cu_seqlens"].tolist() == own.tolist()


def test_sequential_predicts_the_corpus(prepared):
    dataset = GPTDataset(prepared, 50, order="sequential")
    batch = dataset.batch(range(len(dataset)))
    predicted = batch["labels"][batch["loss_mask"] == 1]
    assert np.array_equal(predicted, dataset.tokens.tokens[1:])
    assert len(dataset) == dataset.num_samples == -(-(dataset.tokens.num_tokens - 1) // 50)
    assert batch["loss_mask"][:-1].all()


@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=15),
    seq_len=st.integers(1, 12),
    order=st.sampled_from(["stream", "sequential"]),
)
def test_document_boundaries(tmp_path_factory, lengths, seq_len, order):
    """Each token tells its document and its place in it."""
    least = seq_len + 1 if order == "stream" else 2
    if sum(lengths) < least:
        lengths = [*lengths, least]
    prefix = tmp_path_factory.mktemp("pair") / "p"
    with IndexedWriter(prefix, np.dtype("<i4")) as writer:
        for number, length in enumerate(lengths):
            writer.add_documents(number * 100 + np.arange(length), np.array([length]))
    dataset = GPTDataset(prefix, seq_len, seed=5, order=order, reset_positions=True)
    batch = dataset.batch(range(dataset.samples_per_epoch))
    flat = batch["tokens"].ravel()
    # A padding token comes after the last real one, whose label has no loss.
    padding = np.zeros(batch["tokens"].shape, bool)
    padding[:, 1:] = batch["loss_mask"][:, :-1] == 0
    document = np.where(padding.ravel(), -1, flat // 100)
    begins = np.arange(len(flat)) % seq_len == 0
    begins[1:] |= document[1:] != document[:-1]
    # The corpus as a ring: with one document only its beginning shows where it closes.
    begins[1:] |= flat[1:] < flat[:-1]
    expected = [*np.flatnonzero(begins), len(flat)]
    assert batch["cu_seqlens"].tolist() == expected
    assert batch["max_seqlen"] == max(np.diff(expected))
    positions = np.arange(len(flat)) - np.repeat(expected[:-1], np.diff(expected))
    assert batch["positions"].ravel().tolist() == positions.tolist()


def test_what_is_not_there(prepared):
    stream = GPTDataset(prepared, 32)
    sequential = GPTDataset(prepared, 32, order="sequential")
    for dataset, index in ((stream, -1), (sequential, -1), (sequential, len(sequential))):
        with pytest.raises(IndexError):
            dataset[index]
    with pytest.raises(TypeError, match="stream order has no end"):
        len(stream)
    assert stream.num_samples is None
    assert stream.samples_per_epoch == stream.tokens.num_tokens // 32
    assert stream[10**15]["sample_id"] == 10**15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seq_len": 0}, "seq_len: must be at least 1, got 0"),
        ({"order": "random"}, "order: must be stream or sequential, got 'random'"),
        ({"seq_len": 10**6}, r"tokens\.bin: holds \d+ tokens, less than the 1000001 of one sample"),
    ],
)
def test_wrong_arguments(prepared, arguments, message):
    with pytest.raises(ValueError, match=message):
        GPTDataset(prepared, **{"seq_len": 32, **arguments})


def test_the_shortest_datasets(write_pair):
    pair = write_pair([[4, 5, 6]])
    assert GPTDataset(pair, 2).samples_per_epoch == 1
    with pytest.raises(ValueError, match="holds 3 tokens, less than the 4"):
        GPTDataset(pair, 3)
    sample = GPTDataset(pair, 10, order="sequential")[0]
    assert sample["tokens"].tolist() == [4, 5, 6] + [0] * 7
    assert sample["labels"].tolist() == [5, 6] + [0] * 8
    assert sample["loss_mask"].tolist() == [1.0, 1.0] + [0.0] * 8
    single = write_pair([[4]], name="single")
    with pytest.raises(ValueError, match="holds 1 tokens, less than the 2"):
        GPTDataset(single, 10, order="sequential")


@pytest.mark.parametrize(("dtype", "wrong"), [("<u2", 600), ("<i4", -1)])
def test_an_id_beyond_the_vocabulary_is_located(prepared, tmp_path, dtype, wrong):
    tokenizer = load_tokenizer(prepared)
    tokenizer.save(tmp_path)
    manifest = json.loads((prepared / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with IndexedWriter(tmp_path / "tokens", np.dtype(dtype)) as writer:
        writer.add_documents(np.array([5, 6, 7, wrong, 8, 9, 10]), np.array([7]))
    dataset = GPTDataset(TokenDataset(tmp_path), 2, order="sequential")
    assert dataset[0]["tokens"].tolist() == [5, 6]
    offset = 3 * np.dtype(dtype).itemsize
    with pytest.raises(
        ValueError, match=rf"tokens\.bin: byte {offset}: token id {wrong} is not in"
    ):
        dataset[1]
