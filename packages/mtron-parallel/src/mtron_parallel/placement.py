"""Which part of a global tensor this process holds, and where in its own tensor that part lies."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from mtron_parallel.block import Block
from mtron_parallel.cuts import Cut


@dataclass(frozen=True)
class Placement:
    """The one source for checkpoints, gradient norms and summaries: what this rank holds.

    Attributes:
        global_shape: shape of the tensor in the whole model.
        dtype: its element type.
        blocks: the rectangles that this rank holds, in the order in which they are stored.
        replica: 0 for the rank that speaks for these blocks; others hold copies.
    """

    global_shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: tuple[Block, ...]
    replica: int

    @property
    def is_whole(self) -> bool:
        """Whether this rank holds the whole tensor as one block."""
        return len(self.blocks) == 1 and self.blocks[0].shape == self.global_shape


@dataclass(frozen=True)
class Piece:
    """One block of a placement and where it lies in the tensor that holds it.

    The tensor is seen as rows of its last dim (a vector as rows of one element).

    Attributes:
        block: the rectangle of the global tensor.
        rows: first row and number of rows of the tensor that contain it.
        shape: these rows' leading dims.
        slices: the block within `[*shape, width]`.
    """

    block: Block
    rows: tuple[int, int]
    shape: tuple[int, ...]
    slices: tuple[slice, ...]

    def view(self, tensor: Tensor) -> Tensor:
        """Return the block's values in `tensor`, in the block's shape."""
        first, count = self.rows
        if len(self.block.shape) <= 1:
            return tensor.view(-1)[first : first + count].view(self.shape)[self.slices]
        rows = tensor.view(-1, tensor.shape[-1])[first : first + count]
        return rows.view(*self.shape, tensor.shape[-1])[self.slices]


@dataclass(frozen=True)
class ParameterShard:
    """The part of one parameter that this rank's optimizer updates.

    Attributes:
        name: the parameter's global name, the same in every layout.
        tensor: the local values, with the gradient in `.grad` after a backward.
        placement: where they lie in the global parameter.
        pieces: the placement's blocks and where they lie in `tensor`; what no piece covers is
            padding.
    """

    name: str
    tensor: nn.Parameter
    placement: Placement
    pieces: tuple[Piece, ...]

    @property
    def is_whole(self) -> bool:
        """Whether this is the whole parameter (Muon and SOAP need whole matrices)."""
        return self.placement.is_whole

    def blocks_of(self, tensor: Tensor) -> Iterator[tuple[Block, Tensor]]:
        """Yield every block and its values in `tensor`.

        Args:
            tensor: of the shape of `self.tensor`: the weights, or a state of the optimizer.
        """
        for piece in self.pieces:
            yield piece.block, piece.view(tensor)


def pieces_of(cut: Cut, first: int, count: int) -> tuple[Piece, ...]:
    """Return what rows `first` to `first + count` of a local tensor hold of the global one.

    Args:
        cut: how the local tensor is cut out of the global one.
        first: first row, as of `rows_of(cut.shape)`.
        count: number of rows.
    """
    leading = cut.shape[:-1] if len(cut.shape) > 1 else cut.shape
    found = []
    for start, shape, rows in _rectangles(leading, first, first + count):
        box = Block(start, shape)
        if len(cut.shape) > 1:
            box = Block((*start, 0), (*shape, cut.shape[-1]))
        for stored, block in _stored_blocks(cut):
            common = _intersection(box, stored)
            if common is not None:
                offset = tuple(
                    at - own + far
                    for at, own, far in zip(common.offset, stored.offset, block.offset, strict=True)
                )
                slices = tuple(
                    slice(at - own, at - own + size)
                    for at, own, size in zip(common.offset, box.offset, common.shape, strict=True)
                )
                place = (rows - first, prod(shape))
                found.append(Piece(Block(offset, common.shape), place, shape, slices))
    return tuple(found)


def _stored_blocks(cut: Cut) -> Iterator[tuple[Block, Block]]:
    """Yield each block's rectangle in the local tensor, and the block.

    Blocks lie one after another along the dim that is cut.
    """
    position = 0
    for block in cut.blocks:
        differing = [
            dim
            for dim, (own, size) in enumerate(zip(cut.shape, block.shape, strict=True))
            if own != size
        ]
        offset = [0] * len(cut.shape)
        if differing:
            offset[differing[0]] = position
            position += block.shape[differing[0]]
        yield Block(tuple(offset), block.shape), block


def _rectangles(
    dims: tuple[int, ...], start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Divide a run of rows into rectangles of `dims`: yield offset, shape and first row of each."""
    if start >= stop:
        return
    if len(dims) <= 1:
        yield (start,) * len(dims), (stop - start,) * len(dims), start
        return
    inner = prod(dims[1:])
    first, last = -(-start // inner), stop // inner
    if first > last:  # within one index of the first dim
        base = start // inner * inner
        for offset, shape, row in _rectangles(dims[1:], start - base, stop - base):
            yield (start // inner, *offset), (1, *shape), row + base
        return
    if start < first * inner:
        for offset, shape, row in _rectangles(dims[1:], start % inner, inner):
            yield (first - 1, *offset), (1, *shape), row + (first - 1) * inner
    if first < last:
        yield (first, *(0,) * (len(dims) - 1)), (last - first, *dims[1:]), first * inner
    if last * inner < stop:
        for offset, shape, row in _rectangles(dims[1:], 0, stop % inner):
            yield (last, *offset), (1, *shape), row + last * inner


def _intersection(a: Block, b: Block) -> Block | None:
    offset = tuple(max(x, y) for x, y in zip(a.offset, b.offset, strict=True))
    shape = tuple(
        min(x + n, y + m) - o
        for x, n, y, m, o in zip(a.offset, a.shape, b.offset, b.shape, offset, strict=True)
    )
    return None if any(size <= 0 for size in shape) else Block(offset, shape)
