from itertools import product
from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mtron_ckpt.boxes import (
    Box,
    all_chunks,
    chunk_at,
    chunk_grid,
    chunks_touching,
    find_gap,
    intersect,
    nth_chunk,
    plan_chunk_shape,
)

shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@st.composite
def boxes_in(draw, shape):
    ends = [sorted(draw(st.tuples(st.integers(0, s), st.integers(0, s)))) for s in shape]
    return Box(tuple(a for a, _ in ends), tuple(b - a for a, b in ends))


@settings(deadline=None)
@given(shapes, st.sampled_from([1, 2, 4, 8]), st.integers(8, 400))
def test_chunks_fit_and_cover_every_element_once(shape, itemsize, max_bytes):
    chunk_shape = plan_chunk_shape(shape, itemsize, max_bytes)
    assert prod(chunk_shape) * itemsize <= max_bytes
    seen = np.zeros(shape, int)
    for index in all_chunks(shape, chunk_shape):
        box = chunk_at(index, shape, chunk_shape)
        seen[box.within(Box((0,) * len(shape), shape))] += 1
    assert (seen == 1).all()


@given(st.integers(1, 10**9), st.integers(1, 10**5))
def test_padding_is_less_than_a_row_per_chunk(rows, columns):
    chunk_shape = plan_chunk_shape((rows, columns), 4, 16 << 20)
    assert chunk_shape[1] == columns
    count = -(-rows // chunk_shape[0])
    assert count * chunk_shape[0] - rows < count


def test_one_row_larger_than_a_chunk_is_cut():
    assert plan_chunk_shape((2, 10**9), 4, 16 << 20)[0] == 1
    assert prod(plan_chunk_shape((2, 10**9), 4, 16 << 20)) * 4 <= 16 << 20


@settings(deadline=None)
@given(st.data(), shapes)
def test_touching_chunks_are_those_that_share_elements(data, shape):
    chunk_shape = tuple(data.draw(st.integers(1, 4)) for _ in shape)
    box = data.draw(boxes_in(shape))
    expected = []
    for number, index in enumerate(product(*map(range, chunk_grid(shape, chunk_shape)))):
        chunk = chunk_at(index, shape, chunk_shape)
        assert nth_chunk(number, shape, chunk_shape) == chunk
        if intersect(chunk, box) is not None:
            expected.append((number, chunk))
    assert list(chunks_touching(box, shape, chunk_shape)) == expected


@settings(deadline=None)
@given(st.data(), st.lists(st.integers(1, 5), max_size=3).map(tuple))
def test_a_division_has_no_gap_and_a_wrong_one_is_named(data, shape):
    chunk_shape = tuple(data.draw(st.integers(1, 4)) for _ in shape)
    boxes = [chunk_at(i, shape, chunk_shape) for i in all_chunks(shape, chunk_shape)]
    assert find_gap(shape, boxes) is None
    assert "cover" in (find_gap(shape, boxes[1:]) or "")
    assert "overlap" in (find_gap(shape, [*boxes, boxes[0]]) or "")


def test_blocks_outside_or_of_another_rank_are_named():
    assert "outside" in (find_gap((4,), [Box((2,), (3,))]) or "")
    assert "outside" in (find_gap((4,), [Box((-1,), (3,))]) or "")
    assert "dims" in (find_gap((4,), [Box((0, 0), (4, 1))]) or "")
