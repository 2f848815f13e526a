"""Checkpoints that several writers have written: what is in them, for every reader."""

import json
import random
import struct
import uuid
import zipfile
from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mtron_ckpt
from mtron_ckpt import CorruptCheckpoint, LocalArray, Metadata, Writers
from mtron_ckpt.dtypes import DTYPES

Values = dict[str, np.ndarray]


@pytest.fixture
def save_together(together):
    """Save what each writer holds, by rank; return the step's directory."""

    def call(root: Path, arrays: list, step: int = 1, **metadata) -> Path:
        session = uuid.uuid4().hex

        def one(rank: int) -> Path:
            writers = Writers(rank, len(arrays), session, 60)
            mine = Metadata(step=step, state={"s": rank}, **metadata)
            return mtron_ckpt.save(root, arrays[rank], mine, writers=writers).wait()

        outcomes = together(one, len(arrays))
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        assert len(set(outcomes)) == 1
        return outcomes[0]

    return call


def cut(value: np.ndarray, offset, stop) -> LocalArray:
    part = value[tuple(slice(o, s) for o, s in zip(offset, stop, strict=True))]
    return LocalArray(part, value.shape, tuple(offset))


def rows(value: np.ndarray, first: int, last: int) -> LocalArray:
    return cut(value, (first, *[0] * (value.ndim - 1)), (last, *value.shape[1:]))


def sharded(values: Values) -> list:
    """Four writers: matrices cut by rows at odd places, the rest replicated or held by one."""
    result: list[dict] = [{} for _ in range(4)]
    for name, value in values.items():
        if value.ndim == 2 and value.size:
            length = len(value)
            cuts = [0, length // 7, length // 2, length // 2, length]
            for rank in range(4):
                result[rank][name] = rows(value, cuts[rank], cuts[rank + 1])
        elif value.ndim == 1 and value.size:
            for rank in range(4):
                result[rank][name] = LocalArray.whole(value)
        else:
            result[2][name] = LocalArray.whole(value)
    return result


@pytest.fixture
def everything(values) -> Values:
    rng = np.random.default_rng(5)
    result = values(0)
    for name, dtype in DTYPES.items():
        content = rng.integers(0, 2 if name == "bool" else 256, 7 * 401 * dtype.itemsize, np.uint8)
        result[f"types/{name}"] = content.view(dtype).reshape(7, 401)
    return result | {"empty/x": np.zeros((0, 4), np.float32)}


@pytest.fixture
def path(tmp_path, save_together, everything, small_chunks) -> Path:
    return save_together(tmp_path / "root", sharded(everything))


@st.composite
def divisions(draw, shape):
    """Cut an array by planes through what is left, again and again."""
    boxes = [(tuple(0 for _ in shape), shape)]
    for _ in range(draw(st.integers(0, 5))):
        if not shape:
            break
        number, dim = draw(st.integers(0, len(boxes) - 1)), draw(st.integers(0, len(shape) - 1))
        start, stop = boxes[number]
        where = draw(st.integers(start[dim], stop[dim]))
        low, high = list(stop), list(start)
        low[dim] = high[dim] = where
        boxes[number : number + 1] = [(start, tuple(low)), (tuple(high), stop)]
    return boxes


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(st.data(), st.integers(2, 4))
def test_any_layout_comes_back_as_any_other(
    tmp_path, save_together, same, small_chunks, data, count
):
    shapes = st.lists(st.integers(0, 70), max_size=3).map(tuple)
    types = st.sampled_from([np.dtype(np.float32), np.dtype(np.int8), DTYPES["bfloat16"]])
    rng = np.random.default_rng(0)
    values: Values = {}
    arrays: list[dict] = [{} for _ in range(count)]
    for number in range(data.draw(st.integers(0, 3))):
        shape, dtype = data.draw(shapes), data.draw(types)
        content = rng.integers(0, 256, int(np.prod(shape)) * dtype.itemsize, np.uint8)
        values[f"param/{number}"] = value = content.view(dtype).reshape(shape)
        for offset, stop in data.draw(divisions(shape)):
            for rank in data.draw(st.sets(st.integers(0, count - 1), min_size=1)):
                held = arrays[rank].setdefault(f"param/{number}", [])
                held.append(cut(value, offset, stop))
    path = save_together(tmp_path / uuid.uuid4().hex, arrays)
    checkpoint = mtron_ckpt.open(path)
    assert sorted(checkpoint.names()) == sorted(values)
    assert mtron_ckpt.verify(path).ok
    for name, value in values.items():
        assert same(checkpoint.read(name), value)
        for _ in range(4):
            block = []
            for extent in value.shape:
                start, stop = sorted(data.draw(st.tuples(*[st.integers(0, extent)] * 2)))
                block.append(slice(start, stop))
            assert same(checkpoint.read(name, tuple(block)), value[tuple(block)])


def test_names_metadata_and_files(path, everything):
    checkpoint = mtron_ckpt.open(path)
    first_seen = dict.fromkeys(name for held in sharded(everything) for name in held)
    assert checkpoint.names() == list(first_seen)
    assert checkpoint.state == {"s": 0}, "the coordinator's"
    for name, value in everything.items():
        assert checkpoint.info(name) == mtron_ckpt.ArrayInfo(value.dtype, value.shape)
    assert sorted(p.name for p in path.iterdir()) == [
        *("COMMIT", "MANIFEST.json", "data", "index.json", "state", "tensorstore.json")
    ]
    data = sorted(p.name for p in (path / "data").iterdir())
    assert data == [f"writer-{rank:04d}-000.zip" for rank in range(4)]
    assert sorted(p.name for p in path.parent.iterdir()) == ["LATEST", "step-00000001"]


def test_every_value_is_stored_once(tmp_path, save_together):
    value = np.random.default_rng(0).standard_normal((1000, 100))
    whole = {f"param/{n}": LocalArray.whole(value + n) for n in range(8)}
    path = save_together(tmp_path, [whole] * 4)
    sizes = [p.stat().st_size for p in sorted((path / "data").iterdir())]
    assert len(sizes) == 4
    assert sum(sizes) < 8 * value.nbytes * 1.02
    assert max(sizes) < 2 * value.nbytes * 1.02, "two arrays each"


def test_shares_are_members_of_legal_archives(path):
    names: list[str] = []
    for file in sorted((path / "data").iterdir()):
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
            names += [name for name in archive.namelist() if "/c/" in name]
    assert len(names) == len(set(names)), "no chunk is written by two"


def test_only_touched_pieces_and_chunks_are_read(path, everything, monkeypatch):
    reads = []
    real = mtron_ckpt.storage.read_at
    monkeypatch.setattr(
        "mtron_ckpt.reading.read_at", lambda *a: (reads.append(len(a[1])), real(*a))[1]
    )
    checkpoint = mtron_ckpt.open(path)
    name = "param/embed.weight"
    inner = checkpoint.record(name).parts[1]
    assert len(inner.chunks) > 3
    first = inner.box.offset[0]
    read = checkpoint.read(name, (slice(first, first + 1),))
    assert np.array_equal(read, everything[name][first : first + 1])
    assert reads == [inner.chunk_bytes]
    assert len(checkpoint._files._open) == 1, "one writer's file"


def test_a_lazy_replica_is_loaded_only_by_who_writes_it(tmp_path, save_together):
    class Lazy:
        shape, dtype = (1000,), np.dtype(np.float32)

        def __init__(self, rank: int, number: int) -> None:
            self.rank, self.number = rank, number

        def __array__(self, dtype=None, copy=None):
            asked.append((self.rank, self.number))
            return np.full(self.shape, self.number, self.dtype)

    asked: list[tuple[int, int]] = []
    arrays = [{f"param/{n}": LocalArray.whole(Lazy(r, n)) for n in range(6)} for r in range(3)]
    checkpoint = mtron_ckpt.open(save_together(tmp_path, arrays))
    assert sorted(number for _, number in asked) == list(range(6))
    assert sorted(rank for rank, _ in asked) == [0, 0, 1, 1, 2, 2]
    assert all(checkpoint.read(f"param/{n}")[7] == n for n in range(6))


def test_writers_with_nothing_to_write(tmp_path, save_together, same):
    value = np.arange(6.0)
    path = save_together(tmp_path / "a", [{}, {"param/x": LocalArray.whole(value)}, {}])
    assert same(mtron_ckpt.open(path).read("param/x"), value)
    assert [p.name for p in (path / "data").iterdir()] == ["writer-0001-000.zip"]
    assert mtron_ckpt.verify(path).ok
    path = save_together(tmp_path / "b", [{}, {"param/x": []}])
    assert mtron_ckpt.open(path).names() == []
    assert mtron_ckpt.verify(path).ok


def test_a_writer_alone_is_as_without_writers(tmp_path, values, save):
    first = save(tmp_path / "a", values(0), state={"s": 0})
    arrays = {name: LocalArray.whole(value) for name, value in values(0).items()}
    metadata = Metadata(
        step=1,
        config={"model": {"hidden_size": 41}},
        state={"s": 0},
        assets={"tokenizer.json": b'{"version": "1.0"}'},
    )
    writers = Writers(0, 1, "session")
    second = mtron_ckpt.save(tmp_path / "b", arrays, metadata, writers=writers).wait()
    for file in first.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (second / file.relative_to(first)).read_bytes()


def test_zarr_python_reads_every_array_as_one(path, everything, same):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(mtron_ckpt.zarr_store(path), mode="r")
    assert sorted(group.group_keys()) == ["empty", "exp_avg", "param", "scale", "types"]
    for name, value in everything.items():
        assert same(np.asarray(group[name][...]), value)
        if value.ndim == 2 and value.size:
            assert same(np.asarray(group[name][1:6, 3:39]), value[1:6, 3:39])


def test_zarr_python_reads_the_pieces_without_this_package(path, everything, same):
    zarr = pytest.importorskip("zarr")
    mtron_ckpt.register_zarr_dtypes()
    name = "types/bfloat16"
    value, found = everything[name], np.zeros((7, 401), ml_dtypes.bfloat16)
    for file in sorted((path / "data").iterdir()):
        with zarr.storage.ZipStore(file, mode="r") as store:
            group = zarr.open_group(store, mode="r")
            if name not in group:
                continue
            pieces = group[name]
            assert pieces.attrs.asdict() == {"data_type": "bfloat16", "shape": [7, 401]}
            for key, piece in pieces.arrays():
                offset = [int(part) for part in key.split("-")]
                place = tuple(slice(o, o + s) for o, s in zip(offset, piece.shape, strict=True))
                found[place] = piece[...]
    assert same(found, value)


def test_tensorstore_opens_every_array_by_its_stored_spec(path, everything, same, monkeypatch):
    tensorstore = pytest.importorskip("tensorstore")
    monkeypatch.chdir(path)
    specs = json.loads(Path("tensorstore.json").read_text())["arrays"]
    assert specs.keys() == everything.keys()
    drivers = {spec["driver"] for spec in specs.values()}
    assert drivers == {"zarr3", "stack"}
    for name, value in everything.items():
        array = tensorstore.open(specs[name], open=True, read=True).result()
        assert array.domain.shape == value.shape
        assert same(array.read().result(), value)
        if value.ndim == 2 and value.size:
            assert same(array[1:6, 3:39].read().result(), value[1:6, 3:39])


def test_damage_is_found_and_named_by_the_rows_of_the_array(path, everything):
    rng = random.Random(0)
    checkpoint = mtron_ckpt.open(path)
    data = sorted((path / "data").iterdir())
    for name in ("param/embed.weight", "types/float8_e5m2", "exp_avg/norm.weight"):
        for piece in checkpoint.record(name).parts:
            number = rng.randrange(len(piece.chunks))
            file, position, _ = piece.chunks[number]
            content = bytearray(data[file].read_bytes())
            content[position + rng.randrange(piece.chunk_bytes)] ^= 1 << rng.randrange(8)
            original = data[file].read_bytes()
            data[file].write_bytes(content)
            (found,) = mtron_ckpt.verify(path).damages
            box = piece.chunk_box(number)
            assert (found.array, found.rows) == (name, (box.offset[0], box.stop[0]))
            assert found.file == str(data[file])
            place = tuple(slice(o, o + s) for o, s in zip(*box, strict=True))
            with pytest.raises(CorruptCheckpoint) as raised:
                mtron_ckpt.open(path).read(name, place)
            assert raised.value.damages == (found,)
            data[file].write_bytes(original)
    data[3].unlink()
    (found,) = mtron_ckpt.verify(path).damages
    assert (found.file, found.problem) == (str(data[3]), "missing")
    assert np.array_equal(
        mtron_ckpt.open(path).read("param/embed.weight", (slice(0, 9),)),
        everything["param/embed.weight"][:9],
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a["pieces"].pop(),
        lambda a: a["pieces"].append(a["pieces"][0]),
        lambda a: a["pieces"][1].update(offset=[3, 0]),
        lambda a: a["pieces"][1]["chunks"].pop(),
        lambda a: a["pieces"][1].update(chunk_shape=[5]),
        lambda a: a.update(chunk_shape=[5, 5]),
        lambda a: a.pop("pieces"),
    ],
)
def test_an_index_that_cannot_be_is_refused(path, change):
    from isal.isal_zlib import crc32

    from mtron_ckpt.manifest import dump_commit

    index = json.loads((path / "index.json").read_text())
    change(next(a for a in index["arrays"] if a["name"] == "param/embed.weight"))
    (path / "index.json").write_text(json.dumps(index))
    manifest = json.loads((path / "MANIFEST.json").read_text())
    content = (path / "index.json").read_bytes()
    for record in manifest["files"]:
        if record["path"] == "index.json":
            record.update(size=len(content), crc32=crc32(content))
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    (path / "COMMIT").write_bytes(dump_commit((path / "MANIFEST.json").read_bytes()))
    with pytest.raises(CorruptCheckpoint, match=r"malformed: .*param/embed\.weight"):
        mtron_ckpt.open(path)


def test_inspect_shows_arrays_whatever_their_pieces(path, capsys):
    from mtron_ckpt.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(path)])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "embed.weight  float32 [300, 41]  48.0 KiB" in shown
    assert "types: " in shown


def test_a_reader_that_knows_only_the_document(path, everything, same):
    """Standard library only, to the letter of docs/checkpoint-format.md: index and data files."""
    manifest = json.loads((path / "MANIFEST.json").read_text())
    files = [(path / name).read_bytes() for name in manifest["data"]]
    read = 0
    for array in json.loads((path / "index.json").read_text())["arrays"]:
        if array["dtype"] != "float32" or array["name"].startswith("types"):
            continue  # whose random bits are no numbers that Python would keep
        if "pieces" not in array:
            continue
        assert array.keys() == {"name", "dtype", "shape", "pieces"}
        height, width = array["shape"]
        found = [[None] * width for _ in range(height)]
        for piece in array["pieces"]:
            (top, left), (rows, columns) = piece["offset"], piece["shape"]
            down, right = piece["chunk_shape"]
            grid = product(range(-(-rows // down)), range(-(-columns // right)))
            for (i, j), (file, position, _) in zip(grid, piece["chunks"], strict=True):
                values = struct.unpack_from(f"<{down * right}f", files[file], position)
                for y, x in product(range(i * down, rows), range(j * right, columns)):
                    if y < (i + 1) * down and x < (j + 1) * right:
                        assert found[top + y][left + x] is None
                        found[top + y][left + x] = values[(y - i * down) * right + x - j * right]
        assert same(np.array(found, np.float32), everything[array["name"]])
        read += 1
    assert read == 2


def test_a_large_grid_of_pieces(tmp_path, save_together, same, small_chunks):
    value = np.random.default_rng(0).standard_normal((64, 48))
    arrays: list[dict] = [{"param/w": []} for _ in range(4)]
    for number, (top, left) in enumerate(product(range(0, 64, 8), range(0, 48, 6))):
        arrays[number % 4]["param/w"].append(cut(value, (top, left), (top + 8, left + 6)))
    checkpoint = mtron_ckpt.open(save_together(tmp_path, arrays))
    assert len(checkpoint.record("param/w").parts) == 64
    assert same(checkpoint.read("param/w"), value)
    assert same(checkpoint.read("param/w", (slice(5, 40), slice(7, 8))), value[5:40, 7:8])
