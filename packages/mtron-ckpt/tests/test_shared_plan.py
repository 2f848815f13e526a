from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtron_ckpt import LocalArray
from mtron_ckpt.boxes import Box, find_gap
from mtron_ckpt.local_arrays import check_held
from mtron_ckpt.messages import BlockList
from mtron_ckpt.shared_plan import PlanCache, list_blocks, plan_shared


def held_by(arrays):
    """Arrays by name: shape and [(offset, shape), ...]."""
    given_ = {
        name: [LocalArray(np.empty(extent, np.float32), shape, offset) for offset, extent in blocks]
        for name, (shape, blocks) in arrays.items()
    }
    return check_held(given_)


def plan(*writers):
    return plan_shared([list_blocks(held_by(arrays), len(writers)) for arrays in writers])


def loads_of(shared, count):
    loads = [0] * count
    for (_, box), writer in shared.writer_of.items():
        loads[writer] += 4 * box.volume
    return loads


sizes = st.lists(st.integers(1, 1000), min_size=1, max_size=30)


@settings(deadline=None)
@given(sizes, st.integers(1, 6))
def test_replicas_that_all_hold_are_divided_evenly(extents, count):
    arrays = {f"param/{n}": ((size,), [((0,), (size,))]) for n, size in enumerate(extents)}
    loads = loads_of(plan(*[arrays] * count), count)
    assert sum(loads) == 4 * sum(extents)
    assert max(loads) <= sum(loads) / count + 4 * max(extents)


@settings(deadline=None)
@given(st.data(), sizes, st.integers(2, 5))
def test_each_block_is_written_by_one_of_its_holders(data, extents, count):
    subsets = st.sets(st.integers(0, count - 1), min_size=1)
    holders = {f"param/{n}": data.draw(subsets) for n in range(len(extents))}
    writers = [
        {
            f"param/{n}": ((size,), [((0,), (size,))])
            for n, size in enumerate(extents)
            if rank in holders[f"param/{n}"]
        }
        for rank in range(count)
    ]
    shared = plan(*writers)
    assert {name for name, _ in shared.writer_of} == set(holders)
    pieces = [shared.pieces_of(rank, held_by(writers[rank])) for rank in range(count)]
    for rank, written in enumerate(pieces):
        assert all(rank in holders[piece.array.name] for piece in written)
    assert sorted(p.array.name for written in pieces for p in written) == sorted(holders)
    again = plan(*writers)
    assert (again.writer_of, again.digest, again.forms) == (
        shared.writer_of,
        shared.digest,
        shared.forms,
    )
    assert shared.total_bytes >= 4 * sum(extents)


def test_who_has_much_of_its_own_writes_fewer_replicas():
    own = {"param/own": ((100,), [((0,), (100,))])}
    both = {f"param/{n}": ((60,), [((0,), (60,))]) for n in range(3)}
    assert loads_of(plan(own | both, both), 2) == [4 * 160, 4 * 120]


def test_one_writers_blocks_that_are_the_array_become_one_piece():
    halves = ((6, 2), [((0, 0), (3, 2)), ((3, 0), (3, 2))])
    third = ((6, 2), [((0, 0), (2, 2))])
    rest = ((6, 2), [((2, 0), (2, 2)), ((4, 0), (2, 2))])
    first, second = {"param/a": halves, "param/b": third}, {"param/b": rest}
    shared = plan(first, second)
    assert [p.key for p in shared.pieces_of(0, held_by(first))] == ["param/a", "param/b/0-0"]
    assert [p.key for p in shared.pieces_of(1, held_by(second))] == ["param/b/2-0", "param/b/4-0"]


def test_empty_blocks_and_empty_arrays():
    holds = {"param/none": ((0, 3), [((0, 0), (0, 3))]), "param/x": ((4,), [((0,), (4,))])}
    other = {"param/none": ((0, 3), [((0, 2), (0, 1))]), "param/x": ((4,), [((4,), (0,))])}
    shared = plan(other, holds, {})
    assert shared.writer_of[("param/x", Box((0,), (4,)))] == 1
    assert [form.name for form in shared.forms] == ["param/none", "param/x"]
    written = [
        piece.array.name
        for rank, arrays in enumerate((other, holds))
        for piece in shared.pieces_of(rank, held_by(arrays))
    ]
    assert sorted(written) == ["param/none", "param/x"]


def test_what_is_no_division_names_array_and_writers():
    def one(offset, extent, shape=(4, 6)):
        return {"param/w": (shape, [(offset, extent)])}

    left, right = one((0, 0), (4, 3)), one((0, 3), (4, 3))
    with pytest.raises(ValueError, match=r"param/w: .*cover 12 of 24.*writers 0, 2 for"):
        plan(left, {}, left)
    with pytest.raises(ValueError, match=r"param/w: .*of writer 0 and of .* of writer 2 overlap"):
        plan(left, right, one((0, 2), (4, 4)))
    with pytest.raises(ValueError, match=r"disagree.*\(4, 6\) from writer 0 and .*\(4, 7\) from w"):
        plan(left, one((0, 3), (4, 4), (4, 7)))
    with pytest.raises(ValueError, match=r"cover 0 of 24.* writers without elements"):
        plan(one((0, 0), (0, 3)))
    other_type = check_held({"param/w": LocalArray(np.zeros((4, 3), np.int8), (4, 6), (0, 3))})
    with pytest.raises(ValueError, match=r"float32 .* from writer 0 and int8 .* from writer 1"):
        plan_shared([list_blocks(held_by(left), 2), list_blocks(other_type, 2)])
    with pytest.raises(ValueError, match=r"writers\.count: .*got 2 on writer 0 and 3 on writer 1"):
        plan_shared([list_blocks({}, 2), list_blocks({}, 3)])


def test_what_one_writer_holds_is_checked_alone():
    def attempt(*blocks):
        held_by({"param/w": ((4, 6), list(blocks))})

    with pytest.raises(ValueError, match=r"param/w: the block .* outside"):
        attempt(((0, 4), (4, 3)))
    with pytest.raises(ValueError, match=r"param/w: the blocks at .* overlap"):
        attempt(((0, 0), (4, 3)), ((0, 0), (4, 3)))
    attempt(((0, 0), (1, 1)), ((1, 1), (1, 1)))  # gaps are for the others
    assert check_held({"param/w": []}) == {}


@settings(deadline=None)
@given(st.data(), st.integers(1, 3))
def test_overlap_is_found_as_by_comparing_all(data, dims):
    count = data.draw(st.integers(0, 6))
    spans = st.tuples(st.integers(0, 5), st.integers(0, 4))
    boxes = []
    for _ in range(count):
        drawn = [data.draw(spans) for _ in range(dims)]
        boxes.append(Box(tuple(o for o, _ in drawn), tuple(s for _, s in drawn)))
    seen = np.zeros((9,) * dims, int)
    for box in boxes:
        seen[tuple(slice(o, o + s) for o, s in zip(*box, strict=True))] += 1
    problem = find_gap((9,) * dims, boxes)
    assert ("overlap" in (problem or "")) == bool(seen.max(initial=0) > 1)
    if problem is None:
        assert prod((9,) * dims) == seen.sum()


def test_a_plan_is_kept_as_long_as_the_blocks_stay():
    arrays = {"param/w": ((4,), [((0,), (4,))])}
    mine = list_blocks(held_by(arrays), 1)
    cache, shared = PlanCache(), plan(arrays)
    assert cache.find(mine) is None
    cache.keep(mine, shared)
    assert cache.find(BlockList.model_validate_json(mine.model_dump_json())) is shared
    assert cache.find(list_blocks({}, 1)) is None
    cache.clear()
    assert cache.find(mine) is None
