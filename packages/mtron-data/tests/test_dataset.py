import shutil
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtron_data import IndexedWriter, TokenDataset, load_tokenizer, train_tokenizer, verify

DOCUMENTS = [[1, 2, 3], [], [4, 5], [6], [], [7, 8, 9, 10]]


def test_documents_and_counts(write_pair, tmp_path):
    dataset = write_pair(DOCUMENTS)
    assert (dataset.num_documents, dataset.num_sequences, dataset.num_tokens) == (6, 4, 10)
    assert [document.tolist() for document in dataset[:]] == DOCUMENTS
    assert dataset[-1].tolist() == DOCUMENTS[-1]
    assert dataset.tokens.dtype == np.uint16
    assert dataset.manifest is None
    for index in (6, -7):
        with pytest.raises(IndexError):
            dataset[index]
    for name in ("pair", "pair.bin", "pair.idx"):
        assert TokenDataset(tmp_path / name).num_tokens == 10


def test_an_empty_pair_is_legal(write_pair):
    for documents in ([], [[], []]):
        dataset = write_pair(documents)
        assert (len(dataset), dataset.num_tokens) == (len(documents), 0)
        assert verify(dataset.prefix).ok


@given(
    documents=st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=1, max_size=12),
    data=st.data(),
)
def test_document_starts(tmp_path_factory, documents, data):
    """Documents of any number of sequences (here of the lengths given)."""
    prefix = tmp_path_factory.mktemp("starts") / "p"
    with IndexedWriter(prefix, np.dtype("<u2")) as writer:
        for lengths in documents:
            writer.add_document(np.ones(sum(lengths), np.uint16), lengths)
    dataset = TokenDataset(prefix)
    begins, at = set(), 0
    for lengths in documents:
        if lengths:
            begins.add(at)
        at += sum(lengths)
    start = data.draw(st.integers(0, at))
    stop = data.draw(st.integers(start, at))
    expected = sorted(begin for begin in begins if start < begin < stop)
    assert dataset.document_starts(start, stop).tolist() == expected


def test_fingerprint_is_of_the_content(write_pair, tmp_path):
    one = write_pair(DOCUMENTS)
    same = write_pair(DOCUMENTS, name="elsewhere")
    other = write_pair([*DOCUMENTS[:-1], [7, 8, 9, 11]], name="other")
    wide = write_pair(DOCUMENTS, dtype="<i4", name="wide")
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, other.fingerprint, wide.fingerprint}) == 3


# Offsets in the index of DOCUMENTS: lengths at 34, pointers at 50, document index at 82, end 138.
@pytest.mark.parametrize(
    ("offset", "patch", "message"),
    [
        (0, b"X", "byte 0: is not an index"),
        (9, struct.pack("<Q", 2), "byte 9: unknown version, got 2"),
        (17, b"\x09", "byte 17: unknown dtype, got code 9"),
        (17, b"\x07", "byte 17: tokens are integers, got float32"),
        (17, b"\x04", "byte 20: the index .* describes 28 bytes"),
        (18, struct.pack("<Q", 5), "announces 5 sequences"),
        (18, struct.pack("<Q", 2**63), "announces 9223372036854775808 sequences"),
        (26, struct.pack("<Q", 6), "5 documents, 130 bytes, got 138"),
        (38, struct.pack("<i", -2), "byte 38: sequence 1 has a negative length, got -2"),
        (38, struct.pack("<i", 3), "byte 66: sequence 2 must begin at byte 12"),
        (58, struct.pack("<q", 7), "byte 58: sequence 1 must begin at byte 6 .* got 7"),
        (82, struct.pack("<q", 1), "byte 82: the first document must begin with sequence 0"),
        (90, struct.pack("<q", 3), "byte 98: document 2 begins before its predecessor: 1"),
        (130, struct.pack("<q", 3), "byte 130: the last document must end with sequence 4, got 3"),
    ],
)
def test_damage_is_refused_with_its_offset(write_pair, offset, patch, message):
    dataset = write_pair(DOCUMENTS)
    data = bytearray(dataset.index_path.read_bytes())
    assert len(data) == 138
    data[offset : offset + len(patch)] = patch
    dataset.index_path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        TokenDataset(dataset.prefix)


@pytest.mark.parametrize("size", [0, 10, 33, 34, 60, 137])
def test_a_truncated_index_is_refused(write_pair, size):
    dataset = write_pair(DOCUMENTS)
    dataset.index_path.write_bytes(dataset.index_path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"pair\.idx: "):
        TokenDataset(dataset.prefix)


@pytest.mark.parametrize("size", [0, 18, 19, 21])
def test_tokens_of_another_size_are_refused(write_pair, size):
    dataset = write_pair(DOCUMENTS)
    dataset.bin_path.write_bytes((dataset.bin_path.read_bytes() + b"xx")[:size])
    with pytest.raises(
        ValueError, match=rf"pair\.bin: byte \d+: the index .* 20 bytes, got {size}"
    ):
        TokenDataset(dataset.prefix)


def test_multimodal_indices_are_refused(write_pair):
    dataset = write_pair(DOCUMENTS)
    dataset.index_path.write_bytes(dataset.index_path.read_bytes() + b"\0" * 4)
    with pytest.raises(ValueError, match="byte 138: has a mode for each sequence"):
        TokenDataset(dataset.prefix)


@given(data=st.data())
def test_no_bytes_crash_the_reader(tmp_path_factory, data):
    """Any damage to the index is a ValueError, or leaves a dataset that can be read."""
    directory = tmp_path_factory.mktemp("fuzz")
    with IndexedWriter(directory / "p", np.dtype("<u2")) as writer:
        for document in DOCUMENTS:
            writer.add_document(np.array(document, np.uint16), [len(document)] if document else [])
    index = bytearray((directory / "p.idx").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        index[data.draw(st.integers(0, len(index) - 1))] = data.draw(st.integers(0, 255))
    (directory / "p.idx").write_bytes(index[: data.draw(st.integers(0, len(index)))])
    try:
        dataset = TokenDataset(directory / "p")
    except ValueError as error:
        assert str(directory) in str(error)
    else:
        assert sum(len(document) for document in dataset[:]) == dataset.num_tokens


def test_what_is_missing_is_named(tmp_path, write_pair):
    with pytest.raises(ValueError, match=r"nothing\.bin and .*nothing\.idx are missing"):
        TokenDataset(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"tokens\.bin and .*tokens\.idx are missing"):
        TokenDataset(tmp_path)
    dataset = write_pair(DOCUMENTS)
    dataset.bin_path.unlink()
    with pytest.raises(ValueError, match=r"pair\.bin is missing"):
        TokenDataset(dataset.prefix)


def test_another_tokenizer_than_the_manifest_names(prepared, tmp_path, corpus, tokenizer):
    dataset = TokenDataset(prepared)
    dataset.check_tokenizer(tokenizer)
    other = train_tokenizer(corpus, 500, tmp_path / "other").tokenizer
    with pytest.raises(ValueError, match="was prepared with the tokenizer"):
        dataset.check_tokenizer(other)
    copy = shutil.copytree(prepared, tmp_path / "copy")
    other.save(copy)
    with pytest.raises(ValueError, match="is another tokenizer than the one that prepared"):
        TokenDataset(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json: is missing"):
        TokenDataset(copy)


def test_a_reformatted_tokenizer_is_still_the_same(prepared, tmp_path):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    path = copy / "tokenizer.json"
    path.write_text(load_tokenizer(copy)._plain.to_str(pretty=False))
    assert path.read_bytes() != (prepared / "tokenizer.json").read_bytes()
    assert TokenDataset(copy).num_tokens


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format": 1', '"format": 2', "format is not as"),
        ('"num_tokens": ', '"num_tokens": -', "num_tokens is not as"),
        ('"key"', '"kye"', "kye|key"),
        ("{", "", "the file is not as"),
    ],
)
def test_a_damaged_manifest_is_refused(prepared, tmp_path, old, new, message):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    path = copy / "manifest.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        TokenDataset(copy)
