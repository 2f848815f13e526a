from itertools import accumulate, pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parallel_rules import Replicate, Shard

from mtron_parallel import Block, Placement
from mtron_parallel.cuts import Cut, cut
from mtron_parallel.flat import rows_of
from mtron_parallel.placement import pieces_of


def whole(*shape):
    return Cut(shape, (Block((0,) * len(shape), shape),), replica=0, replicas=1)


@st.composite
def cases(draw):
    """A shape, a rule and a number of ranks that fit together, and where owners divide the rows."""
    size = draw(st.integers(1, 4))
    num_dims = draw(st.integers(0, 3))
    shape = [draw(st.integers(1, 7)) for _ in range(num_dims)]
    kind = draw(st.sampled_from(["replicate", "equal", "padded", "few", "segments"]))
    dim = draw(st.integers(0, max(num_dims - 1, 0)))
    if kind == "replicate" or not shape:
        rule = Replicate()
    elif kind == "equal":
        unit = draw(st.integers(1, 3))
        shape[dim] = size * unit * draw(st.integers(1, 3))
        rule = Shard(dim, unit=unit)
    elif kind == "padded":
        shape[dim] = draw(st.integers(1, 40))
        rule = Shard(dim, pad=True)
    elif kind == "few":
        units = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
        shape[dim] = 2 * units
        rule = Shard(dim, unit=2, replicate_if_fewer=True)
    else:
        segments = tuple(size * draw(st.integers(1, 3)) for _ in range(draw(st.integers(1, 3))))
        shape[dim] = sum(segments)
        rule = Shard(dim, segments=segments)
    owners = draw(st.lists(st.floats(0, 1), max_size=3))
    return tuple(shape), rule, size, sorted(owners)


def local_tensor(tensor, own, dim):
    """What a rank holds, put together by hand; padding is -1."""
    local = torch.full(own.shape, -1)
    parts = [tensor[block.slices] for block in own.blocks]
    if parts and tensor.dim():
        filled = torch.cat(parts, dim)
        local.narrow(dim, 0, filled.shape[dim]).copy_(filled)
    elif parts:
        local.copy_(parts[0])
    return local


@settings(deadline=None, max_examples=200)
@given(cases())
def test_pieces_of_any_rows_of_any_cut_make_the_global_tensor(case):
    shape, rule, size, owners = case
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    times = torch.zeros(shape, dtype=torch.int64)
    for rank in range(size):
        own = cut(shape, rule, size, rank)
        local = local_tensor(tensor, own, getattr(rule, "dim", 0))
        count, width = rows_of(own.shape)
        stops = [0, *(round(share * count) for share in owners), count]
        held = 0
        for first, stop in pairwise(stops):
            flat = local.reshape(-1)[first * width : stop * width]
            part = flat if len(shape) <= 1 else flat.view(-1, width)
            for piece in pieces_of(own, first, stop - first):
                values = piece.view(part)
                assert values.shape == piece.block.shape
                assert torch.equal(values, tensor[piece.block.slices])
                held += values.numel()
                if own.replica == 0:
                    times[piece.block.slices] += 1
        assert held == int((local >= 0).sum())  # what is left over is padding
    assert bool((times == 1).all())


def test_views_can_be_written():
    own = cut((4, 6), Shard(1), 2, 1)
    local = torch.zeros(4, 3)
    (piece,) = pieces_of(own, 1, 2)
    assert piece.block == Block((1, 3), (2, 3))
    piece.view(local[1:3]).fill_(7)
    assert local.sum() == 6 * 7
    assert local[1:3].sum() == 6 * 7


def test_a_matrix_without_segments_is_one_rectangle():
    for first in range(5):
        for count in range(1, 6 - first):
            (piece,) = pieces_of(whole(5, 4), first, count)
            assert piece.block == Block((first, 0), (count, 4))


def test_three_dims_are_at_most_three_rectangles():
    sizes = [len(pieces_of(whole(4, 3, 2), a, b - a)) for a in range(12) for b in range(a + 1, 13)]
    assert set(sizes) == {1, 2, 3}
    # Rows 2 to 11 of 4 times 3: the last of the first matrix, two matrices, two of the last.
    blocks = [piece.block for piece in pieces_of(whole(4, 3, 2), 2, 9)]
    assert blocks == [
        Block((0, 2, 0), (1, 1, 2)),
        Block((1, 0, 0), (2, 3, 2)),
        Block((3, 0, 0), (1, 2, 2)),
    ]


def test_segments_are_found_in_both_halves():
    # Rank 1 of 2 holds rows 2, 3 of the first segment and 6, 7 of the second.
    own = cut((8, 3), Shard(segments=(4, 4)), 2, 1)
    assert [piece.block for piece in pieces_of(own, 1, 2)] == [
        Block((3, 0), (1, 3)),
        Block((6, 0), (1, 3)),
    ]
    columns = cut((3, 8), Shard(1, segments=(4, 4)), 2, 1)
    assert [piece.block for piece in pieces_of(columns, 0, 2)] == [
        Block((0, 2), (2, 2)),
        Block((0, 6), (2, 2)),
    ]


def test_padding_is_no_piece():
    own = cut((5, 3), Shard(pad=True), 2, 1)
    assert own.shape == (8, 3)
    assert pieces_of(own, 0, 8) == ()


def test_whole_or_not():
    assert Placement((2, 3), torch.float32, (Block((0, 0), (2, 3)),), 0).is_whole
    assert not Placement((2, 3), torch.float32, (Block((0, 0), (1, 3)),), 0).is_whole
    assert not Placement((2, 3), torch.float32, (), 0).is_whole
    parts = tuple(Block((start, 0), (1, 3)) for start in accumulate([0, 1]))
    assert not Placement((2, 3), torch.float32, parts, 0).is_whole
