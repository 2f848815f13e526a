import runpy
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtron_parallel.block import Block
from mtron_parallel.cuts import Cut, cut, rule_of

LAYOUTS = runpy.run_path(str(Path(__file__).with_name("layouts.py")))
Shard, Replicate = LAYOUTS["Shard"], LAYOUTS["Replicate"]


def cuts(shape, rule, size):
    return [cut(shape, rule, size, rank) for rank in range(size)]


def test_columns():
    assert cuts((6, 4), Shard(dim=1), 2) == [
        Cut((6, 2), (Block((0, 0), (6, 2)),), replica=0, replicas=1),
        Cut((6, 2), (Block((0, 2), (6, 2)),), replica=0, replicas=1),
    ]


def test_units_stay_together():
    assert cut((24,), Shard(unit=4), 3, 2) == Cut((8,), (Block((16,), (8,)),), 0, 1)
    with pytest.raises(ValueError, match="tp: 4 does not divide the unit count 6 of dim 0"):
        cut((24,), Shard(unit=4), 4, 0)


def test_each_segment_is_shared_by_all():
    assert cut((12, 5), Shard(segments=(8, 4)), 2, 1) == Cut(
        (6, 5), (Block((4, 0), (4, 5)), Block((10, 0), (2, 5))), 0, 1
    )


def test_neighbours_hold_the_same_unit_where_there_are_fewer():
    rule = Shard(unit=4, replicate_if_fewer=True)
    assert cuts((8, 3), rule, 4) == [
        Cut((4, 3), (Block((0, 0), (4, 3)),), replica=0, replicas=2),
        Cut((4, 3), (Block((0, 0), (4, 3)),), replica=1, replicas=2),
        Cut((4, 3), (Block((4, 0), (4, 3)),), replica=0, replicas=2),
        Cut((4, 3), (Block((4, 0), (4, 3)),), replica=1, replicas=2),
    ]
    with pytest.raises(ValueError, match="3 neither divides nor is a multiple of the unit count 2"):
        cut((8, 3), rule, 3, 0)


def test_fused_keys_and_values_are_copied_together():
    rule = Shard(segments=(4, 4), unit=4, replicate_if_fewer=True)
    assert cut((8,), rule, 2, 1) == Cut((8,), (Block((0,), (4,)), Block((4,), (4,))), 1, 2)


# The mixed input projection of a Mamba-2 layer with 4 heads of 6 and 2 groups with 5 states each:
# [z, x, B, C, dt], of which z and x have 6 rows of a head, B and C 5 of a group, dt one of a head.
MIXED = Shard(
    segments=(24, 24, 10, 10, 4),
    unit=(6, 6, 5, 5, 1),
    replicate_if_fewer=True,
    of=("heads", "heads", "groups", "groups", "heads"),
)


def test_segments_with_units_of_their_own():
    assert cut((72, 3), MIXED, 2, 1) == Cut(
        (36, 3),
        (
            Block((12, 0), (12, 3)),
            Block((36, 0), (12, 3)),
            Block((53, 0), (5, 3)),
            Block((63, 0), (5, 3)),
            Block((70, 0), (2, 3)),
        ),
        replica=0,
        replicas=1,
    )


def test_a_tensor_is_not_cut_in_some_segments_and_copied_in_others():
    with pytest.raises(ValueError, match="tp: 4 is more than groups = 2;"):
        cut((72, 3), MIXED, 4, 0)


def test_segments_and_units_are_as_many():
    with pytest.raises(ValueError, match=r"one for each of the 1 segments, got \(6, 6\)"):
        cut((12,), Shard(segments=(12,), unit=(6, 6)), 2, 0)
    with pytest.raises(ValueError, match=r"multiples of unit = \(6, 4\) that add up"):
        cut((18,), Shard(segments=(12, 6), unit=(6, 4)), 2, 0)


def test_a_vocabulary_that_divides_is_not_padded():
    assert cut((20, 3), Shard(pad=True), 4, 3) == Cut((5, 3), (Block((15, 0), (5, 3)),), 0, 1)


def test_a_vocabulary_is_padded_at_its_end():
    # 41 rows on 3 ranks: 41 / 24 rounded up is 2 times 8 rows each.
    assert cuts((41, 3), Shard(pad=True), 3) == [
        Cut((16, 3), (Block((0, 0), (16, 3)),), 0, 1),
        Cut((16, 3), (Block((16, 0), (16, 3)),), 0, 1),
        Cut((16, 3), (Block((32, 0), (9, 3)),), 0, 1),
    ]


def test_the_last_ranks_may_hold_padding_only():
    held = [own.blocks for own in cuts((10, 3), Shard(pad=True), 4)]
    assert held == [(Block((0, 0), (8, 3)),), (Block((8, 0), (2, 3)),), (), ()]


def test_whole_on_every_rank():
    for rule in (Replicate(), Replicate(sequence=True), Shard(axis="ep")):
        assert cut((3, 2), rule, 4, 3) == Cut((3, 2), (Block((0, 0), (3, 2)),), 3, 4)


def test_a_scalar():
    assert cut((), Replicate(), 1, 0) == Cut((), (Block((), ()),), 0, 1)


def test_the_first_pattern_that_matches_counts():
    layout = {"*.bias": Replicate(), "layers.*": Shard()}
    assert rule_of("layers.0.bias", layout) == Replicate()
    assert rule_of("layers.0.weight", layout) == Shard()
    with pytest.raises(ValueError, match="no pattern matches the parameter Layers"):
        rule_of("Layers.0", layout)


def test_a_string_is_no_rule():
    with pytest.raises(ValueError, match="rule of w is neither a Shard nor a Replicate, got 'rep"):
        rule_of("w", {"*": "replicate"})


@st.composite
def cases(draw):
    """A shape, a rule that fits it, and a number of ranks that can follow it."""
    size, unit = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["plain", "segments", "mixed", "fewer", "pad", "ep", "whole"]))
    dims = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    dim = draw(st.integers(0, len(dims) - 1))
    units = size * draw(st.integers(1, 3))
    segments = ()
    if kind == "segments":
        counts = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        segments = tuple(size * count * unit for count in counts)
        units = sum(segments) // unit
    elif kind == "mixed":
        unit = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
        segments = tuple(size * draw(st.integers(1, 2)) * each for each in unit)
    elif kind == "fewer":
        units = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    elif kind in ("pad", "ep", "whole"):
        units = draw(st.integers(1, 40))
    dims[dim] = sum(segments) or units * unit
    fewer, axis = kind == "fewer", "ep" if kind == "ep" else "tp"
    rule = Shard(dim, segments, unit, pad=kind == "pad", replicate_if_fewer=fewer, axis=axis)
    return tuple(dims), Replicate() if kind == "whole" else rule, size


@settings(max_examples=300, deadline=None)
@given(cases())
def test_ranks_tile_the_parameter(case):
    shape, rule, size = case
    found = cuts(shape, rule, size)
    assert len({(own.shape, own.replicas) for own in found}) == 1
    holders = {index: [] for index in product(*map(range, shape))}
    for own in found:
        for block in own.blocks:
            assert all(extent > 0 for extent in block.shape)
            for index in product(*(range(part.start, part.stop) for part in block.slices)):
                holders[index].append(own.replica)
    replicas = list(range(found[0].replicas))
    assert all(sorted(held) == replicas for held in holders.values())
    for own in found:
        check_storage(own, shape, rule)


def check_storage(own, shape, rule):
    """The blocks lie one after another in the local tensor; only a padded one has room left."""
    dim = getattr(rule, "dim", 0)
    stored = sum(block.shape[dim] for block in own.blocks)
    padded = getattr(rule, "pad", False) and own.shape[dim] % 8 == 0
    assert stored == own.shape[dim] or (padded and stored < own.shape[dim])
    assert own.shape[:dim] + own.shape[dim + 1 :] == shape[:dim] + shape[dim + 1 :]
    units = getattr(rule, "unit", 1)
    if isinstance(units, tuple):
        held = [block.shape[dim] for block in own.blocks]
        assert not any(extent % unit for extent, unit in zip(held, units, strict=True))
    else:
        assert own.shape[dim] % units == 0
