from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtron_parallel.flat import (
    ALIGNMENT,
    MIN_ROWS,
    MOST_PADDING,
    Slot,
    plan_buckets,
    plan_flat,
    plan_layouts,
    rows_of,
)

rows = st.integers(1, 200)
widths = st.one_of(st.integers(1, 70), st.sampled_from([1, 64, 96, 256]))
tensors = st.lists(st.tuples(rows, widths), min_size=1, max_size=12)
ranks = st.integers(1, 9)


def check(layout, tensors, ranks):
    """Slots are disjoint and in order, and each rank owns whole rows of an equal segment."""
    assert [slot.index for slot in layout.slots] == list(range(len(tensors)))
    assert [(slot.rows, slot.width) for slot in layout.slots] == list(tensors)
    assert all(before.stop <= after.start for before, after in pairwise(layout.slots))
    assert layout.slots[-1].stop <= layout.size == layout.segment * ranks
    owned = [entry for rank in range(ranks) for entry in layout.owned(rank)]
    for slot in layout.slots:
        parts = [(first, count) for own, first, count in owned if own is slot]
        assert parts[0][0] == 0
        assert all(first + count == then for (first, count), (then, _) in pairwise(parts))
        assert sum(parts[-1]) == slot.rows


@given(tensors, ranks)
def test_every_cut_is_on_a_row(tensors, ranks):
    layout = plan_flat(tensors, ranks)
    check(layout, tensors, ranks)
    for rank in range(ranks):
        start, stop = rank * layout.segment, (rank + 1) * layout.segment
        for slot, first, count in layout.owned(rank):
            begin = slot.start + first * slot.width
            assert start <= begin
            assert begin + count * slot.width <= stop


@given(tensors, ranks)
def test_tensors_begin_aligned_unless_a_cut_moves_them(tensors, ranks):
    layout = plan_flat(tensors, ranks)
    for slot in layout.slots:
        crosses = slot.start // layout.segment < (slot.stop - 1) // layout.segment
        assert (
            crosses
            or slot.start % ALIGNMENT == 0
            or slot.start % layout.segment == 0
            or (slot.stop == (slot.start // layout.segment + 1) * layout.segment)
        )


@given(tensors, ranks)
def test_padding_is_bounded(tensors, ranks):
    """No segment is much longer than its share or the largest tensor, whatever the widths."""
    sizes = [count * width for count, width in tensors]
    widest = max(width for _, width in tensors)
    gaps = len(tensors) * (ALIGNMENT + widest)
    segment = plan_flat(tensors, ranks).segment
    assert segment <= 2 * (max(sum(sizes) / ranks, *sizes, widest) + ALIGNMENT) + gaps / ranks


def test_a_cut_in_a_matrix_moves_it_to_a_row():
    # In segments of 128 the matrix would begin at 98, for 3 rows before the cut, and not fit: 258
    # elements. In segments of 160 it begins at 100, with 6 rows before the cut.
    layout = plan_flat([(96, 1), (16, 10)], 2)
    assert layout.segment == 160
    assert layout.slots == (Slot(0, 0, 96, 1), Slot(1, 100, 16, 10))
    check(layout, [(96, 1), (16, 10)], 2)


def test_a_matrix_over_many_ranks_makes_segments_whole_rows():
    layout = plan_flat([(64, 48)], 8)
    assert layout.segment % 48 == 0
    assert layout.size == 64 * 48


def test_fewer_elements_than_ranks():
    layout = plan_flat([(3, 1)], 8)
    assert layout.segment == ALIGNMENT
    assert [len(list(layout.owned(rank))) for rank in range(8)] == [1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("ranks", [8, 64])
def test_a_decoder_pads_little(ranks):
    hidden, intermediate = 4096, 14336
    layer = [(hidden, 1), (hidden, hidden), (1024, hidden), (1024, hidden), (hidden, hidden)]
    layer += [(hidden, 1), (intermediate, hidden), (intermediate, hidden), (hidden, intermediate)]
    size = sum(count * width for count, width in layer)
    assert plan_flat(layer, ranks).size < 1.01 * size


@given(tensors, ranks, st.integers(1, 40_000))
def test_buckets_hold_every_tensor_once(tensors, ranks, limit):
    found = plan_layouts(tensors, ranks, limit)
    assert sorted(index for members, _ in found for index in members) == list(range(len(tensors)))
    for members, layout in found:
        check(layout, [tensors[index] for index in members], ranks)


@given(tensors, ranks, st.integers(1, 40_000))
def test_a_bucket_is_divided_by_width_only_where_that_pads_less(tensors, ranks, limit):
    widest = max(width for _, width in tensors)
    limit = max(limit, ranks * MIN_ROWS * widest)
    together = [
        plan_flat([tensors[index] for index in bucket], ranks)
        for bucket in plan_buckets([count * width for count, width in tensors], limit)
    ]
    found = plan_layouts(tensors, ranks, limit)
    assert sum(layout.size for _, layout in found) <= sum(layout.size for layout in together)
    for members, layout in found:
        content = sum(tensors[index][0] * tensors[index][1] for index in members)
        one_width = len({tensors[index][1] for index in members}) == 1
        assert one_width or layout in together or layout.size <= content * (1 + MOST_PADDING)


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 120))
def test_buckets_obey_their_limit(sizes, limit):
    buckets = plan_buckets(sizes, limit)
    assert [index for bucket in buckets for index in bucket] == list(range(len(sizes)))
    totals = [sum(sizes[index] for index in bucket) for bucket in buckets]
    assert all(total <= limit or len(b) == 1 for total, b in zip(totals, buckets, strict=True))
    for before, after in pairwise(buckets):  # none could have been longer
        assert sum(sizes[index] for index in before) + sizes[after.start] > limit


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((), (1, 1)), ((5,), (5, 1)), ((5, 3), (5, 3)), ((2, 5, 3), (10, 3))],
)
def test_rows_are_those_of_the_last_dim(shape, expected):
    assert rows_of(shape) == expected
