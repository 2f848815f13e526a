"""Rectangles of index space: chunk grids, intersections, coverage. Pure functions."""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

Shape = tuple[int, ...]


class Box(NamedTuple):
    """A rectangle: where it begins, and its extent, per dim."""

    offset: Shape
    shape: Shape

    @property
    def stop(self) -> Shape:
        """One past the last index, per dim."""
        return tuple(o + s for o, s in zip(self.offset, self.shape, strict=True))

    @property
    def volume(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def shifted(self, distance: Shape) -> "Box":
        """Return this box moved upwards by `distance`."""
        return Box(tuple(o + d for o, d in zip(self.offset, distance, strict=True)), self.shape)

    def within(self, outer: "Box") -> tuple[slice, ...]:
        """Slices that cut this box out of an array that holds `outer`."""
        return tuple(
            slice(o - base, o - base + s)
            for o, s, base in zip(self.offset, self.shape, outer.offset, strict=True)
        )


def intersect(a: Box, b: Box) -> Box | None:
    """Return what two boxes share, or None."""
    offset = tuple(max(x, y) for x, y in zip(a.offset, b.offset, strict=True))
    stop = tuple(min(x, y) for x, y in zip(a.stop, b.stop, strict=True))
    shape = tuple(e - o for o, e in zip(offset, stop, strict=True))
    return None if any(s <= 0 for s in shape) else Box(offset, shape)


def plan_chunk_shape(shape: Shape, itemsize: int, max_bytes: int) -> Shape:
    """Choose the regular chunk shape for an array.

    Cuts the first dim, and further dims only where one row is larger than a chunk, so that
    a chunk is a run of whole rows. Equal chunks keep the padding of the last one small.

    Args:
        shape: global shape.
        itemsize: bytes per element.
        max_bytes: largest chunk.

    Returns:
        Extent of a chunk per dim, at least 1 each.
    """
    chunk = [max(1, extent) for extent in shape]
    for dim, extent in enumerate(chunk):
        size = prod(chunk) * itemsize
        if size <= max_bytes:
            break
        fitting = max(1, max_bytes // (size // extent))
        count = -(-extent // fitting)
        chunk[dim] = -(-extent // count)
    return tuple(chunk)


def chunk_grid(shape: Shape, chunk_shape: Shape) -> Shape:
    """Return the number of chunks per dim; 0 where the array is empty."""
    return tuple(-(-s // c) for s, c in zip(shape, chunk_shape, strict=True))


def chunk_at(index: Shape, shape: Shape, chunk_shape: Shape) -> Box:
    """Return the part of the array that a chunk holds (edge chunks are stored padded)."""
    offset = tuple(i * c for i, c in zip(index, chunk_shape, strict=True))
    clipped = tuple(min(c, s - o) for c, s, o in zip(chunk_shape, shape, offset, strict=True))
    return Box(offset, clipped)


def nth_chunk(number: int, shape: Shape, chunk_shape: Shape) -> Box:
    """Return what the chunk of this number (last dim fastest) holds."""
    index: list[int] = []
    for count in reversed(chunk_grid(shape, chunk_shape)):
        number, position = divmod(number, count)
        index.append(position)
    return chunk_at(tuple(reversed(index)), shape, chunk_shape)


def all_chunks(shape: Shape, chunk_shape: Shape) -> Iterator[Shape]:
    """Yield the grid index of every chunk, last dim fastest."""
    return product(*(range(n) for n in chunk_grid(shape, chunk_shape)))


def chunks_touching(box: Box, shape: Shape, chunk_shape: Shape) -> Iterator[tuple[int, Box]]:
    """Yield number (last dim fastest) and box of each chunk that shares elements with `box`."""
    if box.volume == 0:
        return
    grid = chunk_grid(shape, chunk_shape)
    ranges = [
        range(o // c, -(-e // c)) for o, e, c in zip(box.offset, box.stop, chunk_shape, strict=True)
    ]
    for index in product(*ranges):
        number = 0
        for i, n in zip(index, grid, strict=True):
            number = number * n + i
        yield number, chunk_at(index, shape, chunk_shape)


def whole_box(shape: Shape) -> Box:
    """Return the box that is all of an array of this shape."""
    return Box((0,) * len(shape), tuple(shape))


def find_overlap(boxes: Sequence[Box]) -> tuple[int, int] | None:
    """Return the positions of two boxes that share elements, the smaller first, or None."""
    dims = range(len(boxes[0].offset)) if boxes else range(0)
    dim = max(dims, key=lambda d: len({box.offset[d] for box in boxes}), default=None)
    if dim is None:  # arrays without dims have one element
        return (0, 1) if len(boxes) > 1 else None
    reaching: list[int] = []  # boxes that may share elements with those still to come
    for number in sorted(range(len(boxes)), key=lambda n: boxes[n].offset[dim]):
        box = boxes[number]
        reaching = [n for n in reaching if boxes[n].stop[dim] > box.offset[dim]]
        for other in reaching:
            if intersect(boxes[other], box) is not None:
                return min(other, number), max(other, number)
        reaching.append(number)
    return None


def find_misfit(shape: Shape, blocks: Sequence[Box]) -> str | None:
    """Say why `blocks` cannot be parts of a division of an array of this shape, or return None."""
    for block in blocks:
        if len(block.offset) != len(shape) or len(block.shape) != len(shape):
            return f"a block has {len(block.shape)} dims and an offset of {len(block.offset)}"
        if any(o < 0 for o in block.offset) or any(
            e > s for e, s in zip(block.stop, shape, strict=True)
        ):
            return f"the block of shape {block.shape} at {block.offset} reaches outside"
    if pair := find_overlap(blocks):
        a, b = (blocks[number].offset for number in pair)
        return f"the blocks at {a} and {b} overlap"
    return None


def find_gap(shape: Shape, blocks: Sequence[Box]) -> str | None:
    """Say why `blocks` are not a division of an array of this shape, or return None."""
    if misfit := find_misfit(shape, blocks):
        return misfit
    covered = sum(block.volume for block in blocks)
    if covered != prod(shape):
        return f"the blocks cover {covered} of {prod(shape)} elements"
    return None
