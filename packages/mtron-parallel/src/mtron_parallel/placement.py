"""Which part of a global tensor this process holds."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Block:
    """A rectangle of a global tensor: the first index and the extent along every dim."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """The rectangle as an index into the global tensor."""
        return tuple(
            slice(start, start + size) for start, size in zip(self.offset, self.shape, strict=True)
        )


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

    @classmethod
    def whole(cls, tensor: torch.Tensor) -> "Placement":
        """Place all of `tensor` on this rank."""
        shape = tuple(tensor.shape)
        return cls(shape, tensor.dtype, (Block((0,) * len(shape), shape),), replica=0)

    @property
    def is_whole(self) -> bool:
        """Whether this rank holds the whole tensor as one block."""
        return len(self.blocks) == 1 and self.blocks[0].shape == self.global_shape
