import json
import threading
import time
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import mtron_ckpt
from mtron_ckpt import IncompleteCheckpoint, LocalArray, Metadata, StagingPool, data_file
from mtron_ckpt.dtypes import DTYPES
from mtron_ckpt.plan import Request, plan_save
from mtron_ckpt.staging import BUFFER_BYTES
from mtron_ckpt.storage import write_at


def files_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def saving_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("mtron-ckpt")]


@pytest.mark.parametrize("shape", [(), (0,), (1,), (5, 0, 3), (7, 11), (3, 50, 41), (2, 3, 4, 5)])
def test_every_type_and_shape_comes_back(tmp_path, save, same, small_chunks, shape):
    rng = np.random.default_rng(0)
    values = {}
    for name, dtype in DTYPES.items():
        size = int(np.prod(shape)) * dtype.itemsize
        content = rng.integers(0, 2 if name == "bool" else 256, size, dtype=np.uint8)
        values[f"param/{name}"] = content.view(dtype).reshape(shape)
    checkpoint = mtron_ckpt.open(save(tmp_path, values))
    assert checkpoint.names() == list(values)
    for name, value in values.items():
        assert same(checkpoint.read(name), value)
        assert checkpoint.info(name) == mtron_ckpt.ArrayInfo(value.dtype, value.shape)


def test_any_memory_order_and_byte_order(tmp_path, save, small_chunks):
    base = np.arange(60 * 50, dtype=np.float32).reshape(60, 50)
    values = {
        "param/transposed": base.T,
        "param/strided": base[::2, ::-3],
        "param/fortran": np.asfortranarray(base),
        "param/big": base.astype(">f4"),
    }
    checkpoint = mtron_ckpt.open(save(tmp_path, values))
    for name, value in values.items():
        read = checkpoint.read(name)
        assert np.array_equal(read, value)
        assert read.dtype == np.dtype("<f4")
        assert read.flags.c_contiguous
        assert read.flags.writeable


def test_an_array_given_as_blocks_is_one_array(tmp_path, same, small_chunks):
    whole = np.random.default_rng(1).standard_normal((90, 70))
    cuts = [(0, 0, 31, 70), (31, 0, 90, 20), (31, 20, 90, 70)]
    blocks = [
        LocalArray(whole[top:bottom, left:right], whole.shape, (top, left))
        for top, left, bottom, right in cuts
    ]
    path = mtron_ckpt.save(tmp_path, {"param/w": blocks}, Metadata(step=0)).wait()
    assert same(mtron_ckpt.open(path).read("param/w"), whole)


def test_metadata_comes_back(tmp_path, save):
    model = {"rope_theta": 1e4, "tiny": 5e-324, "big": 2**70, "name": "Ünïcode", "none": None}
    config = {"model": model}
    state = {"rng": {"key": [1, 2], "on": True}, "scalars": 3.0, "list": []}
    assets = {"tokenizer.json": "{ä}".encode(), "empty": b"", "chat_template.jinja": b"\0\xff"}
    layout = {"tp": 1}
    path = save(tmp_path, {}, 7, config=config, state=state, assets=assets, layout=layout)
    checkpoint = mtron_ckpt.open(tmp_path)
    assert (checkpoint.path, checkpoint.step) == (path, 7)
    assert checkpoint.config == config
    assert checkpoint.state == state
    assert checkpoint.assets == assets
    assert checkpoint.layout == layout
    assert path.name == "step-00000007"
    assert (tmp_path / "LATEST").read_text() == "step-00000007\n"


def test_tuples_come_back_as_lists(tmp_path, save):
    save(tmp_path, {}, config={"betas": (0.9, 0.95)})
    assert mtron_ckpt.open(tmp_path).config == {"betas": [0.9, 0.95]}


def test_equal_saves_have_equal_bytes(tmp_path, save, values):
    first, second = save(tmp_path / "a", values(0)), save(tmp_path / "b", values(0))
    assert files_of(first) == files_of(second)


def test_the_bytes_of_a_sole_writer_never_change(tmp_path, small_chunks):
    """Version 1 of the format, as the first release of this package wrote it."""
    rows = np.arange(300 * 41, dtype=np.float32).reshape(300, 41)
    cuts = [
        LocalArray(rows[:100], rows.shape, (0, 0)),
        LocalArray(rows[100:], rows.shape, (100, 0)),
    ]
    arrays = {
        "param/rows": cuts,
        "param/half": LocalArray.whole(np.arange(48).astype(ml_dtypes.bfloat16)),
        "scale/x": LocalArray.whole(np.array(3.5)),
        "empty/y": LocalArray.whole(np.zeros((0, 4), np.int8)),
    }
    path = mtron_ckpt.save(tmp_path, arrays, Metadata(step=7)).wait()
    stored = {name: zlib.crc32(content) for name, content in files_of(path).items()}
    assert stored["data/writer-0000-000.zip"] == 893310637
    assert stored["index.json"] == 402032373
    assert stored["tensorstore.json"] == 3859107132


def test_the_plan_asks_for_enough_space_but_not_much_more(tmp_path, save, values, small_chunks):
    path = save(tmp_path, values(0))
    arrays = {name: LocalArray.whole(value) for name, value in values(0).items()}
    needed = plan_save(Request(tmp_path, arrays, Metadata(step=1), False)).needed_bytes
    used = sum(map(len, files_of(path).values()))
    assert used <= needed + 1000 <= 2 * used


def test_arrays_may_change_as_soon_as_save_returns(tmp_path, values, same, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(data_file, "write_at", lambda *a: (gate.wait(10), write_at(*a)))
    mine, original = values(3), values(3)
    arrays = {name: LocalArray.whole(value) for name, value in mine.items()}
    handle = mtron_ckpt.save(tmp_path, arrays, Metadata(step=1))
    assert not handle.done
    with pytest.raises(TimeoutError):
        handle.wait(0.01)
    for value in mine.values():
        value[...] = 0
    gate.set()
    checkpoint = mtron_ckpt.open(handle.wait())
    assert handle.done
    for name, value in original.items():
        assert same(checkpoint.read(name), value)


class Lazy:
    """Values that exist only while they are staged; counts how many exist at once."""

    def __init__(self, value: np.ndarray, live: list[int]) -> None:
        self.shape, self.dtype, self._value, self._live = value.shape, value.dtype, value, live

    def __array__(self, dtype=None, copy=None):
        self._live.append(1)
        return self._value.copy()


def test_lazy_arrays_are_asked_once_and_a_small_pool_is_enough(tmp_path, same, monkeypatch):
    monkeypatch.setattr("mtron_ckpt.layout.CHUNK_BYTES", 1 << 20)
    rng = np.random.default_rng(0)
    values = {f"param/{n}": rng.standard_normal((3 << 20,), dtype=np.float32) for n in range(9)}
    asked: list[int] = []
    pool = StagingPool(limit_bytes=2 * BUFFER_BYTES)
    arrays = {name: LocalArray.whole(Lazy(value, asked)) for name, value in values.items()}
    path = mtron_ckpt.save(tmp_path, arrays, Metadata(step=1), pool=pool).wait()
    assert len(asked) == len(values)
    assert pool.allocated_bytes == 2 * BUFFER_BYTES < sum(v.nbytes for v in values.values())
    checkpoint = mtron_ckpt.open(path)
    for name, value in values.items():
        assert same(checkpoint.read(name), value)


def test_a_lazy_array_that_breaks_its_promise_stops_the_save(tmp_path):
    liar = Lazy(np.zeros(4), [])
    liar.shape = (5,)
    with pytest.raises(ValueError, match="promised"):
        mtron_ckpt.save(tmp_path, {"param/x": LocalArray.whole(liar)}, Metadata(step=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limited", [False, True])
def test_giving_up_while_staging_leaves_nothing(tmp_path, limited):
    class Interrupted(Lazy):
        def __array__(self, dtype=None, copy=None):
            raise KeyboardInterrupt

    arrays = {
        "param/a": LocalArray.whole(np.zeros((9 << 20,), np.float32)),
        "param/b": LocalArray.whole(Interrupted(np.zeros(4), [])),
    }
    pool = StagingPool(2 * BUFFER_BYTES if limited else None)
    with pytest.raises(KeyboardInterrupt):
        mtron_ckpt.save(tmp_path, arrays, Metadata(step=1), pool=pool)
    assert list(tmp_path.iterdir()) == []
    assert not saving_threads()


@pytest.mark.parametrize(
    "name",
    [
        *("", "param", "/x", "param/", "../x", "param/..", "param/../../x", "param/a/b", "a/."),
        *("/etc/passwd", "param/a b", "param/é", "param/zarr.json", "__x/y", "param/a\n"),
        *("param/" + "x" * 300, "param\\x"),
    ],
)
def test_names_that_are_no_plain_name_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="array"):
        mtron_ckpt.save(tmp_path / "root", {name: LocalArray.whole(np.zeros(1))}, Metadata(step=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "/etc/passwd", "zarr.json", "x\0"])
def test_asset_and_state_names_cannot_leave_the_directory(tmp_path, name):
    with pytest.raises(ValueError, match=r"metadata\.assets"):
        mtron_ckpt.save(tmp_path / "root", {}, Metadata(step=1, assets={name: b""}))
    if name not in ("", "..", "zarr.json"):  # harmless once .json is appended
        with pytest.raises(ValueError, match=r"metadata\.state"):
            mtron_ckpt.save(tmp_path / "root", {}, Metadata(step=1, state={name: 1}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("metadata", "place"),
    [
        ({"config": {"a": {"b": [1, object()]}}}, r"metadata\.config\.a\.b\[1\]"),
        ({"state": {"s": {"loss": float("nan")}}}, r"metadata\.state\.s\.loss"),
        ({"state": {"s": {1: 2}}}, r"metadata\.state\.s: keys"),
        ({"layout": {"x": np.int64(3)}}, r"metadata\.layout\.x"),
        ({"config": {"x": b"bytes"}}, r"metadata\.config\.x"),
    ],
)
def test_what_json_cannot_hold_is_named(tmp_path, metadata, place):
    with pytest.raises(ValueError, match=place):
        mtron_ckpt.save(tmp_path / "root", {}, Metadata(step=1, **metadata))
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_do_not_fit_are_refused(tmp_path):
    def attempt(blocks):
        mtron_ckpt.save(tmp_path / "root", {"param/w": blocks}, Metadata(step=1))

    half = np.zeros((2, 3))
    with pytest.raises(ValueError, match="param/w: the blocks cover 6 of 12"):
        attempt(LocalArray(half, (4, 3), (0, 0)))
    with pytest.raises(ValueError, match=r"param/w: the blocks at .* overlap"):
        attempt([LocalArray(half, (4, 3), (0, 0)), LocalArray(half, (4, 3), (1, 0))])
    with pytest.raises(ValueError, match=r"param/w: the block .* outside"):
        attempt(LocalArray(half, (4, 3), (3, 0)))
    with pytest.raises(ValueError, match=r"param/w: .* dims"):
        attempt(LocalArray(half, (4, 3), (0,)))
    with pytest.raises(ValueError, match="param/w: no block"):
        attempt([])
    with pytest.raises(ValueError, match="param/w: all blocks must agree"):
        attempt([LocalArray(half, (4, 3), (0, 0)), LocalArray(half, (5, 3), (2, 0))])
    with pytest.raises(ValueError, match=r"param/w: .*object"):
        attempt(LocalArray.whole(np.array([None])))
    with pytest.raises(ValueError, match=r"param/w: not a numpy array, got .*from_torch"):
        attempt(LocalArray(Foreign(), (3,), (0,)))
    assert list(tmp_path.iterdir()) == []


class Foreign:
    """Something with a dtype that is not numpy's, like a tensor."""

    dtype = "torch.float32"
    shape = (3,)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (Metadata(step=-1), r"metadata\.step: .* got -1"),
        (Metadata(step=True), r"metadata\.step"),
        (Metadata(step="7"), r"metadata\.step"),
        (Metadata(step=1, config=[1]), r"metadata\.config: must be a dictionary, got list"),
        (Metadata(step=1, assets={"a": "text"}), r"metadata\.assets\.a: .*bytes, got str"),
        (Metadata(step=1, assets={"a": 5}), r"metadata\.assets\.a: .*bytes, got int"),
    ],
)
def test_metadata_of_the_wrong_type_is_refused(tmp_path, metadata, message):
    with pytest.raises(ValueError, match=message):
        mtron_ckpt.save(tmp_path / "root", {}, metadata)
    assert list(tmp_path.iterdir()) == []


def test_shapes_may_be_numpy_integers(tmp_path, same):
    value = np.arange(6.0).reshape(2, 3)
    shape, offset = tuple(np.array([2, 3])), tuple(np.array([0, 0]))
    path = mtron_ckpt.save(
        tmp_path, {"param/w": LocalArray(value, shape, offset)}, Metadata(step=0)
    ).wait()
    assert same(mtron_ckpt.open(path).read("param/w"), value)


def test_a_step_that_exists_is_refused_before_anything_happens(tmp_path, save, values):
    path = save(tmp_path, values(0), 5)
    before = files_of(tmp_path)
    with pytest.raises(FileExistsError, match=r"step-00000005.*replace=True"):
        save(tmp_path, values(1), 5)
    assert files_of(tmp_path) == before
    (tmp_path / "step-00000006").mkdir()
    with pytest.raises(FileExistsError, match="step-00000006"):
        save(tmp_path, values(1), 6)
    assert path == mtron_ckpt.open(tmp_path).path


def test_a_step_is_replaced_when_asked(tmp_path, save, values, same):
    save(tmp_path, values(0), 5)
    arrays = {name: LocalArray.whole(value) for name, value in values(1).items()}
    mtron_ckpt.save(tmp_path, arrays, Metadata(step=5), replace=True).wait()
    checkpoint = mtron_ckpt.open(tmp_path)
    assert same(checkpoint.read("param/embed.weight"), values(1)["param/embed.weight"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["LATEST", "step-00000005"]
    mtron_ckpt.save(tmp_path, arrays, Metadata(step=6), replace=True).wait()
    assert mtron_ckpt.verify(tmp_path).ok


def test_the_slower_of_two_saves_of_one_step_is_refused(tmp_path, save, values, monkeypatch):
    begun, gate = threading.Event(), threading.Event()

    def slow_write(*arguments):
        begun.set()
        gate.wait(10)
        write_at(*arguments)

    monkeypatch.setattr(data_file, "write_at", slow_write)
    arrays = {name: LocalArray.whole(value) for name, value in values(1).items()}
    slow = mtron_ckpt.save(tmp_path, arrays, Metadata(step=5))
    begun.wait(10)
    monkeypatch.setattr(data_file, "write_at", write_at)
    save(tmp_path, values(0), 5)
    gate.set()
    with pytest.raises(FileExistsError, match="step-00000005"):
        slow.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["LATEST", "step-00000005"]
    assert mtron_ckpt.verify(tmp_path).ok


def test_a_root_that_is_a_file_is_refused(tmp_path, save):
    (tmp_path / "root").write_text("x")
    with pytest.raises(NotADirectoryError, match="root: checkpoints are saved in a directory"):
        save(tmp_path / "root", {})


@pytest.mark.parametrize("dropped", ["before", "after"])
def test_an_error_that_nobody_waits_for_is_logged(tmp_path, monkeypatch, caplog, dropped):
    gate = threading.Event()

    def fail(*_):
        gate.wait(10)
        raise OSError(5, "broken disk")

    monkeypatch.setattr(data_file, "write_at", fail)
    handle = mtron_ckpt.save(tmp_path, {}, Metadata(step=5))
    if dropped == "before":
        del handle
    gate.set()
    while saving_threads():
        time.sleep(0.001)
    if dropped == "after":
        del handle
    assert "step 5 was not saved, and nobody waited for it" in caplog.text
    assert "broken disk" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_readable_before_the_commit(tmp_path, save, monkeypatch):
    def fail(*_):
        raise OSError(5, "broken disk")

    monkeypatch.setattr("mtron_ckpt.steps.TemporaryStep.commit", fail)
    with pytest.raises(OSError, match="broken disk"):
        save(tmp_path, {"param/x": np.zeros(3, ml_dtypes.bfloat16)})
    with pytest.raises(IncompleteCheckpoint):
        mtron_ckpt.open(tmp_path)


def test_documents_are_readable_by_people(tmp_path, save, values):
    path = save(tmp_path, values(0), 20)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert manifest["format"] == "mtron-checkpoint"
    assert manifest["step"] == 20
    assert (path / "index.json").read_text().count("\n") == len(values(0)) + 2
