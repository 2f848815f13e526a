import weakref

import ml_dtypes
import numpy as np
import pytest

from mtron_ckpt.conversion.names import NameTable, Row
from mtron_ckpt.conversion.pieces import one_dtype

SIZES = {"experts": 3, "wide": 6, "narrow": 4, "few": 2}
ONE = np.dtype(np.float32)


def expand(*rows):
    return NameTable(rows).expand(SIZES, lambda flag: False, lambda layers: {0: 0, 1: 1})


def values(shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


STACKED = Row("e.{layer}", "x.{layer}.{expert}.w", ("experts", "wide", "narrow"))
QKV = (
    Row("q", "x.qkv", ("wide", "narrow"), fused=0),
    Row("k", "x.qkv", ("few", "narrow"), fused=0),
    Row("v", "x.qkv", ("few", "narrow"), fused=0),
)
CONV1D = (
    Row("q", "x.c", ("wide", "narrow"), transposed=True, fused=0),
    Row("k", "x.c", ("few", "narrow"), transposed=True, fused=0),
)
GATE_UP = (
    Row("gate", "x.gate_up", ("experts", "wide", "narrow"), fused=1),
    Row("up", "x.gate_up", ("experts", "wide", "narrow"), fused=1),
)


@pytest.mark.parametrize(
    ("rows", "theirs"),
    [
        ((Row("w", "x.w", ("wide", "narrow"), transposed=True),), {"x.w": (4, 6)}),
        ((STACKED,), {f"x.{layer}.{e}.w": (6, 4) for layer in range(2) for e in range(3)}),
        (
            (Row("e", "x.{expert}", ("experts", "wide", "narrow"), transposed=True),),
            {f"x.{e}": (4, 6) for e in range(3)},
        ),
        (QKV, {"x.qkv": (10, 4)}),
        (CONV1D, {"x.c": (4, 8)}),
        (GATE_UP, {"x.gate_up": (3, 12, 4)}),
        ((Row("b", "x.b", ("wide",), fused=0), Row("c", "x.b", (5,), fused=0)), {"x.b": (11,)}),
    ],
    ids=["transposed", "stacked", "both", "fused", "conv1d", "fused stack", "sizes"],
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_tensors_come_back_bitwise(rows, theirs, dtype, same):
    tensors = expand(*rows)
    assert tensors.theirs == theirs
    ours, dtype = values(tensors.ours, dtype), np.dtype(dtype)
    there = {n: tensors.read_theirs(n, dtype, ours.__getitem__) for n in tensors.theirs}
    assert {name: array.shape for name, array in there.items()} == theirs
    for name, array in ours.items():
        assert same(tensors.read_ours(name, dtype, there.__getitem__), array)


def test_parts_are_where_they_belong():
    tensors = expand(*CONV1D)
    ours = values(tensors.ours)
    fused = tensors.read_theirs("x.c", ONE, ours.__getitem__)
    assert np.array_equal(fused, np.concatenate([ours["q"].T, ours["k"].T], 1))
    tensors = expand(STACKED)
    ours = values(tensors.ours)
    assert np.array_equal(tensors.read_theirs("x.1.2.w", ONE, ours.__getitem__), ours["e.1"][2])
    tensors = expand(*GATE_UP)
    ours = values(tensors.ours)
    fused = tensors.read_theirs("x.gate_up", ONE, ours.__getitem__)
    assert np.array_equal(fused[1], np.concatenate([ours["gate"][1], ours["up"][1]]))


class Source:
    """Counts reads and makes sure that no tensor lives when the next one is read."""

    def __init__(self, shapes):
        self.shapes = shapes
        self.read_names = []
        self.last = None

    def __call__(self, name):
        assert self.last is None or self.last() is None, "two tensors are held at once"
        array = np.zeros(self.shapes[name], np.float32)
        self.last = weakref.ref(array)
        self.read_names.append(name)
        return array


def test_a_stack_is_read_once_and_never_two_of_them():
    tensors = expand(STACKED, Row("plain", "x.plain", ("wide",)))
    source = Source(tensors.ours)
    read = tensors.remembering_ours(source)
    for name in tensors.theirs:
        tensors.read_theirs(name, ONE, read)
    assert source.read_names == ["e.0", "e.1", "plain"]


def test_a_fused_tensor_is_read_once_and_single_experts_are_not_kept():
    tensors = expand(*QKV, STACKED)
    source = Source(tensors.theirs)
    read = tensors.remembering_theirs(source)
    for name in tensors.ours:
        tensors.read_ours(name, ONE, read)
    assert source.read_names == list(tensors.theirs)
    assert source.last is not None
    assert source.last() is None


def test_parts_of_different_dtypes_are_refused_by_name():
    dtypes = {"x.0": np.dtype(np.float32), "x.1": np.dtype(np.float16)}
    with pytest.raises(ValueError, match=r"here: e: .* float32 for x\.0 and float16 for x\.1"):
        one_dtype("here", "e", dtypes)


@pytest.mark.parametrize(
    "rows",
    [
        (Row("a", "x", ("wide",)), Row("a", "y", ("wide",))),
        (Row("a", "x", ("wide",)), Row("b", "x", ("wide",))),
        (QKV[0], Row("b", "x.qkv", ("wide", "narrow"))),
        (QKV[0], Row("b", "x.qkv", ("wide", "wide"), fused=0)),
    ],
)
def test_mistakes_in_a_table_are_noticed(rows):
    with pytest.raises(AssertionError, match=r"repeat|fit"):
        expand(*rows)
