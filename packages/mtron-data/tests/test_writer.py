import itertools
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtron_data import IndexedWriter, TokenDataset, token_dtype

DOCUMENTS = [([1, 2, 3, 4, 5], [2, 3]), ([], []), ([7], [1]), ([8, 9, 65000], [1, 1, 1])]
# Written by megatron-core 0.16.1's IndexedDatasetBuilder (add_document, finalize).
MEGATRON_BIN = "01000200030004000500070008000900e8fd"
MEGATRON_IDX = (
    "4d4d4944494458000001000000000000000806000000000000000500000000000000"
    "020000000300000001000000010000000100000001000000"
    "000000000000000004000000000000000a000000000000000c000000000000000e00000000000000"
    "1000000000000000"
    "00000000000000000200000000000000020000000000000003000000000000000600000000000000"
)
WIDE_DOCUMENTS = [([70000, 1], [2]), ([], []), ([2], [1])]
MEGATRON_WIDE_BIN = "701101000100000002000000"
MEGATRON_WIDE_IDX = (
    "4d4d4944494458000001000000000000000402000000000000000400000000000000"
    "0200000001000000"
    "00000000000000000800000000000000"
    "0000000000000000010000000000000001000000000000000200000000000000"
)


def by_definition(documents, dtype):
    """The two files, straight from the description of the format."""
    code = {"<u2": 8, "<i4": 4}[dtype]
    kind = {"<u2": "H", "<i4": "i"}[dtype]
    tokens = [token for document, _ in documents for token in document]
    lengths = [length for _, sequences in documents for length in sequences]
    ends = [0]
    for _, sequences in documents:
        ends.append(ends[-1] + len(sequences))
    size = struct.calcsize(kind)
    pointers = [sum(lengths[:i]) * size for i in range(len(lengths))]
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(lengths), len(ends))
    index += struct.pack(f"<{len(lengths)}i", *lengths)
    index += struct.pack(f"<{len(pointers)}q", *pointers)
    index += struct.pack(f"<{len(ends)}q", *ends)
    return struct.pack(f"<{len(tokens)}{kind}", *tokens), index


def written(prefix, documents, dtype):
    with IndexedWriter(prefix, np.dtype(dtype)) as writer:
        for tokens, lengths in documents:
            writer.add_document(np.array(tokens, np.int64), lengths)
    return (
        prefix.with_name(prefix.name + ".bin").read_bytes(),
        prefix.with_name(prefix.name + ".idx").read_bytes(),
    )


@pytest.mark.parametrize(
    ("documents", "dtype", "tokens", "index"),
    [
        (DOCUMENTS, "<u2", MEGATRON_BIN, MEGATRON_IDX),
        (WIDE_DOCUMENTS, "<i4", MEGATRON_WIDE_BIN, MEGATRON_WIDE_IDX),
    ],
)
def test_files_are_those_of_megatron(tmp_path, documents, dtype, tokens, index):
    expected = bytes.fromhex(tokens), bytes.fromhex(index)
    assert by_definition(documents, dtype) == expected
    assert written(tmp_path / "a.b", documents, dtype) == expected


@given(
    documents=st.lists(st.lists(st.integers(0, 65535), max_size=5), max_size=30),
    cuts=st.sets(st.integers(0, 30)),
)
def test_many_documents_at_once_are_the_same_as_one_by_one(tmp_path_factory, documents, cuts):
    directory = tmp_path_factory.mktemp("pair")
    expected = by_definition([(d, [len(d)] if d else []) for d in documents], "<u2")
    bounds = sorted({0, len(documents), *(cut for cut in cuts if cut < len(documents))})
    with IndexedWriter(directory / "p", np.dtype("<u2")) as writer:
        for start, stop in itertools.pairwise(bounds):
            part = documents[start:stop]
            tokens = np.array([token for document in part for token in document], np.uint16)
            writer.add_documents(tokens, np.array([len(document) for document in part]))
        assert writer.num_documents == len(documents)
    assert ((directory / "p.bin").read_bytes(), (directory / "p.idx").read_bytes()) == expected
    dataset = TokenDataset(directory / "p")
    assert [dataset[i].tolist() for i in range(len(dataset))] == documents


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(300, "uint16"), (65499, "uint16"), (65500, "int32"), (65536, "int32"), (200000, "int32")],
)
def test_dtype_follows_megatron(vocab_size, dtype):
    assert token_dtype(vocab_size).name == dtype


def test_ids_that_do_not_fit_are_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="from 3 to 65536 do not fit uint16"),
        IndexedWriter(tmp_path / "p", np.dtype("<u2")) as writer,
    ):
        writer.add_document(np.array([3, 65536]), [2])
    assert not (tmp_path / "p.idx").exists()


def test_a_sequence_too_long_for_the_format_is_refused(tmp_path):
    class Huge:
        """Stands for 2**31 tokens, which this test has no memory for."""

        size = 2**31

    with (
        pytest.raises(ValueError, match="2,147,483,648 tokens does not fit"),
        IndexedWriter(tmp_path / "p", np.dtype("<u2")) as writer,
    ):
        writer.add_document(Huge(), [2**31])  # pyright: ignore[reportArgumentType]


def test_lengths_must_add_up(tmp_path):
    with (
        pytest.raises(AssertionError),
        IndexedWriter(tmp_path / "p", np.dtype("<u2")) as writer,
    ):
        writer.add_document(np.array([1, 2]), [1])


def test_temporary_files_leave_nothing(tmp_path):
    written(tmp_path / "p", DOCUMENTS, "<u2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.bin", "p.idx"]
