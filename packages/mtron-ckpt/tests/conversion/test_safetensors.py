import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mtron_ckpt.arrays import ArrayInfo
from mtron_ckpt.conversion.hf_source import HuggingFaceSource
from mtron_ckpt.conversion.hf_target import plan_shards, write_weights
from mtron_ckpt.conversion.safetensors_io import SafetensorsReader, write_safetensors

DTYPES = [
    np.float64,
    np.float32,
    np.float16,
    np.int64,
    np.int32,
    np.int16,
    np.int8,
    np.uint8,
    np.bool_,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
]


def some_tensors():
    rng = np.random.default_rng(0)
    tensors = {np.dtype(dtype).name: rng.integers(0, 2, (3, 5)).astype(dtype) for dtype in DTYPES}
    return tensors | {
        "scalar": np.array(2.5, np.float32),
        "empty": np.empty((0, 4), np.float32),
    }


def infos(tensors):
    return {name: ArrayInfo(array.dtype, array.shape) for name, array in tensors.items()}


def same(left, right):
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and (left.tobytes() == right.tobytes())
    )


def test_every_dtype_comes_back_bitwise(tmp_path):
    tensors = some_tensors()
    write_safetensors(tmp_path / "x.safetensors", infos(tensors), tensors.items())
    with SafetensorsReader(tmp_path / "x.safetensors") as reader:
        assert list(reader.tensors) == list(tensors)
        for name, array in tensors.items():
            assert same(reader.read(name), array)


def test_the_library_reads_what_we_write(tmp_path):
    tensors = {k: v for k, v in some_tensors().items() if "float8" not in k and "bfloat" not in k}
    write_safetensors(tmp_path / "x.safetensors", infos(tensors), tensors.items())
    loaded = load_file(tmp_path / "x.safetensors")
    assert set(loaded) == set(tensors)
    assert all(same(loaded[name], array) for name, array in tensors.items())


def test_we_read_what_the_library_writes(tmp_path):
    tensors = {k: v for k, v in some_tensors().items() if "float8" not in k}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    with SafetensorsReader(tmp_path / "x.safetensors") as reader:
        assert set(reader.tensors) == set(tensors)
        assert all(same(reader.read(name), array) for name, array in tensors.items())


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones((2, 3), np.float32)}, path)
    good = path.read_bytes()
    lying = good.replace(b"[2,3]", b"[2,4]")
    long_header = struct.pack("<Q", 1 << 60) + good[8:]
    for content in (good[:-1], good[:20], b"", good + b"x", lying, long_header):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.safetensors: not a valid safetensors file"):
            SafetensorsReader(path)


def test_unknown_dtypes_are_named(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones(3, np.uint16)}, path)
    with pytest.raises(ValueError, match="a: dtype U16 cannot be converted"):
        SafetensorsReader(path)


def test_a_file_that_shrinks_meanwhile_is_an_error(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones((2, 3), np.float32)}, path)
    with SafetensorsReader(path) as reader:
        os.truncate(path, path.stat().st_size - 4)
        with pytest.raises(OSError, match="the file ended early"):
            reader.read("a")


def test_shards_keep_order_and_bound():
    tensors = {
        name: ArrayInfo(np.dtype(np.uint8), (size,))
        for name, size in {"a": 4, "b": 5, "c": 20, "d": 1, "e": 9, "f": 0}.items()
    }
    assert plan_shards(tensors, 10) == [["a", "b"], ["c"], ["d", "e", "f"]]


def write_sharded(directory):
    tensors = {f"t{i}": np.full((4, 4), i, np.float32) for i in range(5)}
    write_weights(directory, infos(tensors), tensors.__getitem__, max_bytes=130)
    return tensors


def test_sharded_weights_come_back(tmp_path):
    tensors = write_sharded(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 64
    assert sorted(set(index["weight_map"].values())) == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    with HuggingFaceSource(tmp_path) as source:
        assert all(same(source.read(name), array) for name, array in tensors.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"t0": "../../etc/passwd"}, "must name files beside it"),
        (lambda m: m | {"t0": 5}, "must name files beside it"),
        (lambda m: m | {"t9": m["t0"]}, "t9 is not in model-00001"),
        (lambda m: m | {"t0": m["t4"]}, "files do not belong together"),
        (lambda m: {k: v for k, v in m.items() if k != "t0"}, "files do not belong together"),
        (lambda m: m | {"t0": "gone.safetensors"}, r"gone\.safetensors: missing weight file"),
        (lambda m: [], "weight_map: must map"),
    ],
)
def test_an_index_that_does_not_match_is_refused(tmp_path, change, message):
    write_sharded(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"weight_map": change(index["weight_map"])}))
    with pytest.raises(ValueError, match=message):
        HuggingFaceSource(tmp_path)


def test_incomplete_directories_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        HuggingFaceSource(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        HuggingFaceSource(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: must hold a JSON object, got list"):
        HuggingFaceSource(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        HuggingFaceSource(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="pickled weights"):
        HuggingFaceSource(tmp_path)
