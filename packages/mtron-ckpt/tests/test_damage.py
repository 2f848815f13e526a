"""Damage of every kind, in every file: `verify` refuses, reading refuses or gives the truth."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

import mtron_ckpt
from mtron_ckpt import CorruptCheckpoint

NUM_RANDOM = 300
DATA = "data/writer-0000-000.zip"


@pytest.fixture
def path(tmp_path, save, values, small_chunks):
    return save(tmp_path / "root", values(0))


def files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())


def refuses_or_gives_the_truth(path: Path, values, same) -> bool:
    """Read everything; return whether it was refused."""
    try:
        checkpoint = mtron_ckpt.open(path)
        assert checkpoint.step == 1
        assert checkpoint.config == {"model": {"hidden_size": 41}}
        assert checkpoint.state == {"train": {"step": 1}, "loader": {"cursor": [1, 0.1]}}
        assert checkpoint.assets == {"tokenizer.json": b'{"version": "1.0"}'}
        assert checkpoint.names() == list(values)
    except ValueError:
        return True
    refused = False
    for name, value in values.items():
        try:
            assert same(checkpoint.read(name), value)
        except CorruptCheckpoint as error:
            assert error.damages[0].array == name
            refused = True
    return refused


def damage(content: bytes, rng: random.Random) -> bytes:
    """Flip one bit, cut off an end, or overwrite a stretch."""
    kind = rng.choice(["flip", "flip", "truncate", "overwrite", "append"])
    place = rng.randrange(len(content))
    if kind == "flip":
        bit = 1 << rng.randrange(8)
        return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
    if kind == "truncate":
        return content[:place]
    if kind == "append":
        return content + rng.randbytes(rng.randint(1, 9))
    junk = rng.randbytes(rng.randint(1, 64))
    return content[:place] + junk + content[place + len(junk) :]


@pytest.mark.parametrize("seed", range(6))
def test_random_damage_of_random_files(path, values, same, seed):
    rng = random.Random(seed)
    files = files_of(path)
    assert {p.name for p in files} > {"COMMIT", "MANIFEST.json", "tensorstore.json", "index.json"}
    refused = 0
    for _ in range(NUM_RANDOM // 6):
        file = rng.choice(files)
        content = file.read_bytes()
        damaged = damage(content, rng)
        if damaged == content:
            continue
        file.write_bytes(damaged)
        report = mtron_ckpt.verify(path)
        assert not report.ok, (file, damaged)
        assert any(Path(d.file).parent == file.parent for d in report.damages)
        refused += refuses_or_gives_the_truth(path, values(0), same)
        file.write_bytes(content)
    assert refused > 0
    assert mtron_ckpt.verify(path).ok


@pytest.mark.parametrize("name", ["COMMIT", "state/train.json", "tensorstore.json"])
def test_every_bit_of_the_small_files_counts(path, values, same, name):
    content = (path / name).read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            (path / name).write_bytes(flipped)
            assert not mtron_ckpt.verify(path).ok
            if name == "COMMIT":
                with pytest.raises(CorruptCheckpoint):
                    mtron_ckpt.open(path)


def test_every_byte_of_zip_records_counts(path, values, same):
    """Headers, padding, checksums, directory: one flip in each byte outside the values."""
    original = (path / DATA).read_bytes()
    inside = np.zeros(len(original), bool)
    checkpoint = mtron_ckpt.open(path)
    for name in checkpoint.names():
        (piece,) = checkpoint.record(name).parts
        for _, position, _ in piece.chunks:
            inside[position : position + piece.chunk_bytes] = True
    outside = [int(position) for position in np.flatnonzero(~inside)]
    assert len(outside) > 4000
    rng = random.Random(0)
    for position in rng.sample(outside, 200):
        content = bytearray(original)
        content[position] ^= 1 << rng.randrange(8)
        (path / DATA).write_bytes(content)
        (found,) = mtron_ckpt.verify(path).damages
        assert "outside the values of arrays" in found.problem
        assert not refuses_or_gives_the_truth(path, values(0), same)


@pytest.mark.parametrize("index", range(9))
def test_a_missing_file_is_named(path, values, same, index):
    files = files_of(path)
    file = files[index % len(files)]
    file.unlink()
    assert refuses_or_gives_the_truth(path, values(0), same) or file.name == "tensorstore.json"
    if file.name == "COMMIT":
        with pytest.raises(mtron_ckpt.IncompleteCheckpoint):
            mtron_ckpt.verify(path)
    else:
        (found,) = mtron_ckpt.verify(path).damages
        assert found.file == str(file)
        assert found.problem == "missing"


def test_verify_of_a_root_names_a_step_without_commit(tmp_path, path, save, values):
    (path / "COMMIT").unlink()
    save(tmp_path / "root", values(0), 2)
    (found,) = mtron_ckpt.verify(tmp_path / "root").damages
    assert "step-00000001" in found.file
    assert "not committed" in found.problem


def test_files_of_another_step_are_refused(tmp_path, path, save, values, same):
    other = save(tmp_path / "root", values(1), 2, assets={"tokenizer.json": b'{"version": "2.0"}'})
    names = [p.relative_to(path) for p in files_of(path)]
    swapped = 0
    for name in names:
        if (path / name).read_bytes() == (other / name).read_bytes():
            continue
        mine = (path / name).read_bytes()
        shutil.copyfile(other / name, path / name)
        assert not mtron_ckpt.verify(path).ok
        assert refuses_or_gives_the_truth(path, values(0), same)
        (path / name).write_bytes(mine)
        swapped += 1
    assert swapped >= 6
    for name in ("COMMIT", "MANIFEST.json"):
        shutil.copyfile(other / name, path / name)
    with pytest.raises(CorruptCheckpoint, match="this is step 2, the directory's name says 1"):
        mtron_ckpt.open(path)
    assert not mtron_ckpt.verify(path).ok


def test_two_swapped_files_are_refused(path, values, same):
    a, b = path / "state" / "train.json", path / "state" / "loader.json"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    assert len(mtron_ckpt.verify(path).damages) == 2
    assert refuses_or_gives_the_truth(path, values(0), same)


def test_a_file_that_does_not_belong_is_named(path):
    (path / "data" / "stray").write_bytes(b"123")
    (path / "link").symlink_to("/etc/passwd")
    found = mtron_ckpt.verify(path).damages
    assert [d.file for d in found] == [str(path / "data" / "stray"), str(path / "link")]


def test_damage_names_array_rows_file_and_bytes(path, values):
    record = mtron_ckpt.open(path).record("param/embed.weight")
    _, position, _ = record.chunks[2]
    size = record.parts[0].chunk_bytes
    rows = record.chunk_shape[0]
    content = bytearray((path / DATA).read_bytes())
    content[position + 17] ^= 4
    (path / DATA).write_bytes(content)
    (found,) = mtron_ckpt.verify(path).damages
    assert (found.array, found.rows) == ("param/embed.weight", (2 * rows, 3 * rows))
    assert (found.start, found.stop) == (position, position + size)
    assert found.file == str(path / DATA)
    with pytest.raises(CorruptCheckpoint) as raised:
        mtron_ckpt.open(path).read("param/embed.weight")
    assert raised.value.damages == (found,)
    for part in ("param/embed.weight", f"rows {2 * rows}-{3 * rows}", f"bytes {position}-", DATA):
        assert part in str(raised.value)
    undamaged = mtron_ckpt.open(path).read("param/embed.weight", (slice(0, 2 * rows),))
    assert np.array_equal(undamaged, values(0)["param/embed.weight"][: 2 * rows])


def test_a_truncated_data_file_names_what_is_lost(path, values):
    size = (path / DATA).stat().st_size
    with (path / DATA).open("r+b") as file:
        file.truncate(size // 2)
    found = mtron_ckpt.verify(path).damages
    assert f"{size // 2} bytes long instead of {size}" in found[0].problem
    assert {d.array for d in found[1:]} >= {"exp_avg/norm.weight", "scale/norm.weight"}
    with pytest.raises(CorruptCheckpoint, match="ends too early"):
        mtron_ckpt.open(path).read("scale/norm.weight")


def test_raise_if_damaged(path):
    mtron_ckpt.verify(path).raise_if_damaged()
    (path / DATA).unlink()
    with pytest.raises(CorruptCheckpoint, match="missing"):
        mtron_ckpt.verify(path).raise_if_damaged()
