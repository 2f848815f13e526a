"""How the tensors of two formats are made of each other.

Most tensors are the same on both sides. Others are stacked (one of ours holds all experts, each
of theirs one), fused (one of theirs holds several of ours) or transposed. All of that is a list
of pieces, each of which says which part of one of our tensors is which part of one of theirs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Read = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class Piece:
    """A part of one of our tensors that is a part of one of theirs.

    Attributes:
        ours: name in mtron, without the kind (`embed.weight`).
        theirs: name in the other format.
        ours_shape: shape of our tensor.
        expert: the entry of our first dim that this piece is; None: all of our tensor.
        fused: the dim of this piece along which their tensor holds other pieces too; None: this
            piece is all of their tensor.
        start: where along `fused` this piece begins in their tensor.
        transposed: whether their last two dims are swapped.
    """

    ours: str
    theirs: str
    ours_shape: Shape
    expert: int | None = None
    fused: int | None = None
    start: int = 0
    transposed: bool = False

    @property
    def shape(self) -> Shape:
        """Shape of the piece, as we orient it."""
        return self.ours_shape if self.expert is None else self.ours_shape[1:]

    def of_ours(self, array: np.ndarray) -> np.ndarray:
        """Return this piece of our whole tensor, without a copy."""
        return array if self.expert is None else array[self.expert]

    def of_theirs(self, array: np.ndarray) -> np.ndarray:
        """Return this piece of their whole tensor, as we orient it, without a copy."""
        oriented = array.swapaxes(-1, -2) if self.transposed else array
        if self.fused is None:
            return oriented
        stop = self.start + self.shape[self.fused]
        return oriented[(slice(None),) * self.fused + (slice(self.start, stop),)]


class TensorMap:
    """All pieces of one model.

    Attributes:
        ours: name to shape of our tensors.
        theirs: name to shape of theirs.
    """

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._of_ours: dict[str, list[Piece]] = {}
        self._of_theirs: dict[str, list[Piece]] = {}
        for piece in pieces:
            self._of_ours.setdefault(piece.ours, []).append(piece)
            self._of_theirs.setdefault(piece.theirs, []).append(piece)
        self.ours = {name: found[0].ours_shape for name, found in self._of_ours.items()}
        self.theirs = {name: _their_shape(found) for name, found in self._of_theirs.items()}
        self._check()

    def _check(self) -> None:
        """Make sure that no row of a table repeats a name by mistake."""
        for name, pieces in self._of_ours.items():
            experts = [piece.expert for piece in pieces]
            whole = experts == [None] or experts == list(range(self.ours[name][0]))
            assert whole, f"{name}: our names repeat"
        for name, pieces in self._of_theirs.items():
            single = len(pieces) == 1 or all(piece.fused is not None for piece in pieces)
            assert single, f"{name}: their names repeat"

    def theirs_of(self, ours: str) -> list[str]:
        """Return the names of their tensors that ours is made of."""
        return [piece.theirs for piece in self._of_ours[ours]]

    def ours_of(self, theirs: str) -> list[str]:
        """Return the names of our tensors that theirs is made of."""
        return [piece.ours for piece in self._of_theirs[theirs]]

    def is_transposed(self, ours: str) -> bool:
        """Return whether the other format keeps one of our tensors transposed."""
        return self._of_ours[ours][0].transposed

    def read_ours(self, name: str, dtype: np.dtype[Any], read_theirs: Read) -> np.ndarray:
        """Return one of our tensors.

        Args:
            name: ours.
            dtype: of all their tensors that it is made of.
            read_theirs: reads one of their tensors by name.
        """
        pieces = self._of_ours[name]
        if pieces[0].expert is None:
            return pieces[0].of_theirs(read_theirs(pieces[0].theirs))
        stacked = np.empty(self.ours[name], dtype)
        for piece in pieces:
            piece.of_ours(stacked)[...] = piece.of_theirs(read_theirs(piece.theirs))
        return stacked

    def read_theirs(self, name: str, dtype: np.dtype[Any], read_ours: Read) -> np.ndarray:
        """Return one of their tensors.

        Args:
            name: theirs.
            dtype: of all our tensors that it is made of.
            read_ours: reads one of our tensors by name.
        """
        pieces = self._of_theirs[name]
        if pieces[0].fused is None:
            piece = pieces[0].of_ours(read_ours(pieces[0].ours))
            return piece.swapaxes(-1, -2) if pieces[0].transposed else piece
        fused = np.empty(self.theirs[name], dtype)
        for piece in pieces:
            piece.of_theirs(fused)[...] = piece.of_ours(read_ours(piece.ours))
        return fused

    def remembering_ours(self, read: Read) -> Read:
        """Return a `read` of our tensors that reads each once while its pieces are asked for."""
        return _Remembering(read, {n for n, pieces in self._of_ours.items() if len(pieces) > 1})

    def remembering_theirs(self, read: Read) -> Read:
        """Return a `read` of their tensors that reads each once while its pieces are asked for."""
        return _Remembering(read, {n for n, pieces in self._of_theirs.items() if len(pieces) > 1})


class _Remembering:
    """Keeps the last tensor of several pieces, and never two of them."""

    def __init__(self, read: Read, several: set[str]) -> None:
        self._read = read
        self._several = several
        self._name: str | None = None
        self._array: np.ndarray | None = None

    def __call__(self, name: str) -> np.ndarray:
        if name == self._name and self._array is not None:
            return self._array
        self._name = self._array = None  # before the next is read: both need not fit in memory
        array = self._read(name)
        if name in self._several:
            self._name, self._array = name, array
        return array


def _their_shape(pieces: list[Piece]) -> Shape:
    """The shape of their tensor, from all its pieces."""
    first = pieces[0]
    shape = list(first.shape)
    if first.fused is not None:
        shape[first.fused] = sum(piece.shape[first.fused] for piece in pieces)
        others = {(*p.shape[: first.fused], *p.shape[first.fused + 1 :]) for p in pieces}
        assert len(others) == 1, f"{first.theirs}: its pieces do not fit together"
    if first.transposed:
        shape[-2], shape[-1] = shape[-1], shape[-2]
    return tuple(shape)


def one_dtype(source: str, name: str, dtypes: Mapping[str, np.dtype[Any]]) -> np.dtype[Any]:
    """Return the dtype of a tensor that is made of others.

    Args:
        source: the source's path, for the message.
        name: of the tensor.
        dtypes: those of the tensors that it is made of, by name.

    Raises:
        ValueError: if they differ.
    """
    first, *others = dtypes.items()
    for other in others:
        if other[1] != first[1]:
            raise ValueError(
                f"{source}: {name}: its parts must be of one dtype, got {first[1]} for "
                f"{first[0]} and {other[1]} for {other[0]}; store them alike"
            )
    return first[1]
