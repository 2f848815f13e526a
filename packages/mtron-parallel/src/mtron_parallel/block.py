"""A rectangle of a global tensor. Imports no torch."""

from dataclasses import dataclass


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
