import json
import shutil
import struct

import numpy as np
import pytest

from mtron_data import IndexedWriter, TokenDataset, verify


@pytest.fixture
def copy(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


def patch(path, offset, data):
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def test_a_prepared_dataset_is_well(prepared):
    report = verify(prepared)
    assert report.ok
    assert report.num_tokens == TokenDataset(prepared).num_tokens


def test_an_id_beyond_the_vocabulary_is_located(copy):
    patch(copy / "tokens.bin", 2 * 1234, struct.pack("<H", 600))
    report = verify(copy)
    assert not report.ok
    first, second = report.violations
    assert (first.path.name, first.offset) == ("tokens.bin", 2468)
    assert "token id 600 is not in the vocabulary of 600" in first.message
    assert "digest" in second.message


def test_a_changed_token_within_the_vocabulary_breaks_the_digest(copy):
    patch(copy / "tokens.bin", 10, b"\x07\x00")
    (violation,) = verify(copy).violations
    assert (violation.path.name, violation.message[:8]) == ("tokens.bin", "the file")


def test_all_damage_of_the_index_is_reported(copy):
    header = TokenDataset(copy).header
    patch(copy / "tokens.idx", header.pointers_offset + 8, struct.pack("<q", 1))
    patch(copy / "tokens.idx", header.pointers_offset + 24, struct.pack("<q", 2))
    patch(copy / "tokens.idx", header.documents_offset + 8, struct.pack("<q", 10**6))
    offsets = [v.offset for v in verify(copy).violations if v.path.name == "tokens.idx"]
    assert offsets == [
        header.pointers_offset + 8,
        header.pointers_offset + 24,
        header.documents_offset + 16,
        0,
    ]


def test_counts_of_the_manifest(copy):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["num_documents"] += 1
    path.write_text(json.dumps(manifest))
    (violation,) = verify(copy).violations
    assert "documents: the manifest says" in violation.message


def test_a_bare_pair_needs_to_be_told_the_vocabulary(write_pair):
    prefix = write_pair([[1, 2, 99]]).prefix
    assert verify(prefix).ok
    assert verify(prefix, vocab_size=100).ok
    (violation,) = verify(prefix, vocab_size=99).violations
    assert violation.offset == 4


def test_negative_ids(write_pair):
    dataset = write_pair([[1, 2, 3]], dtype="<i4")
    dataset.bin_path.write_bytes(np.array([1, -2, 3], "<i4").tobytes())
    (violation,) = verify(dataset.prefix, vocab_size=99).violations
    assert violation.offset == 4


def test_damage_far_into_a_large_index(tmp_path):
    count = 600_000
    with IndexedWriter(tmp_path / "p", np.dtype("<u2")) as writer:
        writer.add_documents(np.ones(2 * count, np.uint16), np.full(count, 2))
    assert verify(tmp_path / "p").ok
    header = TokenDataset(tmp_path / "p").header
    for offset, data in (
        (34 + 4 * 599_000, struct.pack("<i", -1)),
        (header.pointers_offset + 8 * 400_000, struct.pack("<q", 7)),
        (header.documents_offset + 8 * 300_000, struct.pack("<q", 0)),
    ):
        original = (tmp_path / "p.idx").read_bytes()
        patch(tmp_path / "p.idx", offset, data)
        assert offset in [violation.offset for violation in verify(tmp_path / "p").violations]
        (tmp_path / "p.idx").write_bytes(original)
