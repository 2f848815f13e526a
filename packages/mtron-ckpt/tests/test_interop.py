"""Readers written by others, and one written from docs/checkpoint-format.md alone."""

import json
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

import mtron_ckpt
from mtron_ckpt import LocalArray, Metadata, StagingPool
from mtron_ckpt.dtypes import DTYPES, ML_DTYPES

DATA = "data/writer-0000-000.zip"


@pytest.fixture
def everything(values):
    """Values of every element type, in shapes with and without chunks at the edges."""
    rng = np.random.default_rng(5)
    result = values(0)
    for name, dtype in DTYPES.items():
        size = 7 * 401 * dtype.itemsize
        content = rng.integers(0, 2 if name == "bool" else 256, size, dtype=np.uint8)
        result[f"types/{name}"] = content.view(dtype).reshape(7, 401)
    result["empty/x"] = np.zeros((0, 4), np.float32)
    return result


@pytest.fixture
def path(tmp_path, save, everything, small_chunks):
    return save(tmp_path, everything)


def test_zip_tools_accept_the_data_file(path):
    with zipfile.ZipFile(path / DATA) as archive:
        assert archive.testzip() is None
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())


def test_large_payloads_begin_on_a_page_and_small_ones_on_a_cache_line(path):
    index = json.loads((path / "index.json").read_text())
    for array in index["arrays"]:
        size = np.prod(array["chunk_shape"]) * DTYPES[array["dtype"]].itemsize
        for _, position, _ in array["chunks"]:
            assert position % (4096 if size >= 1024 else 64) == 0


@pytest.mark.parametrize("store", ["zip", "mtron_ckpt"])
def test_zarr_python_reads_every_array(path, everything, same, store):
    zarr = pytest.importorskip("zarr")
    mtron_ckpt.register_zarr_dtypes()
    if store == "zip":
        opened = zarr.storage.ZipStore(path / DATA, mode="r")
    else:
        opened = mtron_ckpt.zarr_store(path)
    group = zarr.open_group(opened, mode="r")
    assert sorted(group.group_keys()) == ["empty", "exp_avg", "param", "scale", "types"]
    assert group["exp_avg"].attrs["kind"] == "exp_avg"
    for name, value in everything.items():
        array = group[name]
        assert array.dtype == value.dtype
        assert same(np.asarray(array[...]), value)
        if value.ndim == 2:
            assert same(np.asarray(array[1:7, 3:39]), value[1:7, 3:39])
    opened.close()


def test_zarr_python_needs_nothing_of_ours_for_ordinary_types(path, everything):
    names = [n for n in everything if n.rpartition("/")[2] not in ML_DTYPES]
    names = [n for n in names if everything[n].dtype.name not in ML_DTYPES]
    sums = {n: zlib.crc32(everything[n].tobytes()) for n in names}
    code = (
        "import sys, json, zlib, zarr, numpy\n"
        "group = zarr.open_group(zarr.storage.ZipStore(sys.argv[1], mode='r'), mode='r')\n"
        "for name, crc in json.loads(sys.argv[2]).items():\n"
        "    assert zlib.crc32(numpy.asarray(group[name][...]).tobytes()) == crc, name\n"
        "assert not any(m.startswith('mtron') for m in sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(path / DATA), json.dumps(sums)], check=True, timeout=60
    )


def test_zarr_python_writes_what_the_registered_types_say(tmp_path, same):
    zarr = pytest.importorskip("zarr")
    mtron_ckpt.register_zarr_dtypes()
    for name in ML_DTYPES:
        value = (1 + np.arange(70).reshape(7, 10) % 7).astype(ML_DTYPES[name])
        array = zarr.create_array(
            str(tmp_path / name), shape=value.shape, dtype=value.dtype, compressors=None
        )
        array[...] = value
        assert same(np.asarray(zarr.open_array(str(tmp_path / name), mode="r")[...]), value)


def test_a_damaged_chunk_raises_and_is_never_fill_value(path, everything):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(mtron_ckpt.zarr_store(path), mode="r")
    (path / DATA).write_bytes(bytes((path / DATA).stat().st_size))
    with pytest.raises(mtron_ckpt.CorruptCheckpoint):
        group["param/embed.weight"][...]
    with pytest.raises(ValueError, match="read-only"):
        zarr.open_group(mtron_ckpt.zarr_store(path), mode="r").store._check_writable()


def test_tensorstore_opens_by_the_stored_spec(path, everything, same, monkeypatch):
    tensorstore = pytest.importorskip("tensorstore")
    monkeypatch.chdir(path)
    spec = json.loads(Path("tensorstore.json").read_text())
    for name, value in everything.items():
        spec["kvstore"]["path"] = f"{name}/"
        array = tensorstore.open(spec, open=True).result()
        assert array.domain.shape == value.shape
        assert same(array.read().result(), value)


@pytest.mark.slow
def test_a_data_file_beyond_4_gib(tmp_path, monkeypatch):
    """Positions that only ZIP64 can hold, for all readers; needs 5 GB of disk for a while."""
    zarr, tensorstore = pytest.importorskip("zarr"), pytest.importorskip("tensorstore")
    row = np.arange(1 << 20, dtype=np.float32)
    last = np.arange(1000.0)
    arrays = {
        f"param/{n}": LocalArray.whole(np.broadcast_to(row + n, (300, len(row)))) for n in range(4)
    } | {"param/last": LocalArray.whole(last)}
    pool = StagingPool(limit_bytes=128 << 20)
    path = mtron_ckpt.save(tmp_path, arrays, Metadata(step=1), pool=pool).wait()
    assert (path / DATA).stat().st_size > 2**32
    checkpoint = mtron_ckpt.open(path)
    assert np.array_equal(checkpoint.read("param/last"), last)
    assert np.array_equal(checkpoint.read("param/3", (slice(299, 300),))[0], row + 3)
    with zarr.storage.ZipStore(path / DATA, mode="r") as store:
        group = zarr.open_group(store, mode="r")
        assert np.array_equal(group["param/last"][...], last)
        assert np.array_equal(group["param/3"][299], row + 3)
    monkeypatch.chdir(path)
    spec = json.loads(Path("tensorstore.json").read_text())
    spec["kvstore"]["path"] = "param/3/"
    assert np.array_equal(tensorstore.open(spec, open=True).result()[299].read().result(), row + 3)
    assert mtron_ckpt.verify(path).ok
    shutil.rmtree(path)


def crc32c(data: bytes) -> int:
    """CRC-32C, bit by bit (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_a_reader_that_knows_only_the_document(tmp_path, save, values, same, small_chunks):
    """Standard library only, to the letter of docs/checkpoint-format.md."""
    path = save(tmp_path, values(0))
    manifest_bytes = (path / "MANIFEST.json").read_bytes()
    line = f"mtron-checkpoint 1\n{len(manifest_bytes)} {zlib.crc32(manifest_bytes)}\n"
    assert (path / "COMMIT").read_bytes() == line.encode()
    manifest = json.loads(manifest_bytes)
    for record in manifest["files"]:
        content = (path / record["path"]).read_bytes()
        assert (len(content), zlib.crc32(content)) == (record["size"], record["crc32"])
    listed = {record["path"] for record in manifest["files"]} | {"MANIFEST.json", "COMMIT"}
    assert {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} == listed
    files = [(path / name).read_bytes() for name in manifest["data"]]
    for array in json.loads((path / "index.json").read_text())["arrays"]:
        value = values(0)[array["name"]]
        if value.ndim != 2 or array["dtype"] != "float32":
            continue
        rows, columns = array["chunk_shape"]
        assert columns == value.shape[1]
        result = []
        for file, position, checksum in array["chunks"]:
            stored = files[file][position : position + rows * columns * 4]
            assert crc32c(stored) == checksum
            trailer = files[file][position + len(stored) :][:4]
            assert struct.unpack("<I", trailer)[0] == checksum
            result += struct.unpack(f"<{rows * columns}f", stored)
        flat = np.array(result[: value.size], np.float32)
        assert same(flat.reshape(value.shape), value)
