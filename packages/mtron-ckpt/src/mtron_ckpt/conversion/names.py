"""Name tables: which tensor is which in two formats, written once and read in both directions.

A family lists one `Row` per kind of tensor. Expanding the table with the sizes of a model gives
the complete list of its tensors, so whatever a source lacks or has too much of can be named.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from mtron_ckpt.conversion.pieces import Piece, Shape, TensorMap

MAX_LISTED = 8
"""How many tensors an error names before it only counts the others."""

Config = dict[str, Any]
"""A model config of ours."""
LayerSet = Callable[[Config], Iterable[int | tuple[int, int]]]
"""The layers that have a tensor, for a config: indices, or pairs of our index and theirs."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """When something exists.

    Attributes:
        when: name of a flag of the family or of a field of our config; it must be true.
        unless: the same; it must be false.
        layers: name of the family's set of layers that `{layer}` runs over.
    """

    when: str | None = None
    unless: str | None = None
    layers: str = "all"


@dataclass(frozen=True)
class Row(Condition):
    """One kind of tensor.

    Attributes:
        ours: name in mtron; `{layer}` stands for each layer's index.
        theirs: name in the other format, with the same placeholder. With `{expert}` it has a
            tensor for each entry of our first dim.
        shape: the names of the sizes (or the sizes) that make the shape of our tensor.
        transposed: whether their last two dims are swapped.
        fused: the dim of ours along which all rows with the same `theirs` lie one after another
            in it, in the order of the rows.
        copy_of: our name of the tensor whose values this one repeats where the row does not
            apply; the other format may hold such a copy.
    """

    ours: str
    theirs: str
    shape: tuple[str | int, ...]
    transposed: bool = False
    fused: int | None = None
    copy_of: str | None = None

    def __post_init__(self) -> None:
        assert ("{layer}" in self.ours) == ("{layer}" in self.theirs), self.ours
        assert "{expert}" not in self.ours, self.ours
        assert self.fused is None or "{expert}" not in self.theirs, self.ours


@dataclass(frozen=True)
class Copy(Condition):
    """A tensor that the other format may hold, although it repeats another one of it.

    Attributes:
        theirs: name in the other format, which may have `{layer}`.
        of: name in the other format of the tensor that it repeats.
    """

    theirs: str
    of: str


@dataclass(frozen=True)
class NameTable:
    """The tensors of an architecture.

    Attributes:
        rows: one per kind of tensor; no two rows may produce the same name of ours.
        derived: names in the other format of buffers that follow from the config and that files
            hold beside the weights; they are not converted. May have `{layer}`.
        copies: tensors of the other format that are not converted because they repeat others.
        old_names: regular expressions of names in old files, with what to replace them by.
    """

    rows: tuple[Row, ...]
    derived: tuple[str, ...] = ()
    copies: tuple[Copy, ...] = ()
    old_names: tuple[tuple[str, str], ...] = ()

    def expand(
        self,
        sizes: Mapping[str, int],
        holds: Callable[[str], bool],
        layers: Callable[[str], Mapping[int, int]],
        most: int = 1_000_000,
    ) -> TensorMap:
        """Every tensor of one model, in the order of the table; rows of layers layer by layer.

        Args:
            sizes: the sizes that shapes refer to.
            holds: whether a flag is true.
            layers: our index to theirs of each layer of a set.
            most: more pieces than this are refused.

        Raises:
            ValueError: if there are more pieces.
        """
        pieces: list[Piece] = []
        filled: dict[str, int] = {}
        for row, layer, their_layer in self._rows(holds, layers):
            shape = tuple(sizes[size] if isinstance(size, str) else size for size in row.shape)
            ours = row.ours.format(layer=layer)
            for expert in range(shape[0]) if "{expert}" in row.theirs else (None,):
                theirs = row.theirs.format(layer=their_layer, expert=expert)
                piece = Piece(ours, theirs, shape, expert, row.fused, transposed=row.transposed)
                pieces.append(_placed(piece, filled))
                if len(pieces) > most:
                    raise ValueError(
                        f"the model config asks for more than {most} tensors, which the source "
                        "does not have; check that config and weights belong together"
                    )
        return TensorMap(pieces)

    def _rows(
        self, holds: Callable[[str], bool], layers: Callable[[str], Mapping[int, int]]
    ) -> Iterator[tuple[Row, int, int]]:
        """Each row that applies, with our and their index of the layer (0 outside layers)."""
        rows = [row for row in self.rows if _applies(row, holds)]
        for block, group in groupby(rows, _block):
            if block is None:
                yield from ((row, 0, 0) for row in group)
                continue
            placed = [(row, layers(row.layers)) for row in group]
            for layer in sorted({layer for _, indices in placed for layer in indices}):
                yield from ((row, layer, found[layer]) for row, found in placed if layer in found)

    def copied(
        self, holds: Callable[[str], bool], layers: Callable[[str], Mapping[int, int]]
    ) -> dict[str, str]:
        """Names in the other format that may repeat another tensor, and that tensor's."""
        theirs = {row.ours: row.theirs for row in self.rows}
        copies = [
            Copy(row.theirs, theirs[row.copy_of])
            for row in self.rows
            if row.copy_of is not None and not _applies(row, holds)
        ]
        copies += [copy for copy in self.copies if _applies(copy, holds)]
        return {
            copy.theirs.format(layer=layer): copy.of.format(layer=layer)
            for copy in copies
            for layer in (layers(copy.layers).values() if "{layer}" in copy.theirs else (0,))
        }

    def is_derived(self, theirs: str) -> bool:
        """Whether a name of the other format is a buffer that follows from the config."""
        return any(
            re.fullmatch(re.escape(name).replace(r"\{layer\}", r"\d+"), theirs)
            for name in self.derived
        )

    def modern_name(self, theirs: str) -> str:
        """What a tensor that an old file calls `theirs` is called today."""
        for pattern, replacement in self.old_names:
            theirs = re.sub(pattern, replacement, theirs)
        return theirs


def _applies(condition: Condition, holds: Callable[[str], bool]) -> bool:
    wanted = condition.when is None or holds(condition.when)
    return wanted and not (condition.unless is not None and holds(condition.unless))


def _block(row: Row) -> str | None:
    """The name of the list of layers that a row belongs to, such as `layers.`."""
    return row.ours.partition("{layer}")[0] if "{layer}" in row.ours else None


def _placed(piece: Piece, filled: dict[str, int]) -> Piece:
    """The piece behind those that are in its fused tensor already."""
    if piece.fused is None:
        return piece
    start = filled.get(piece.theirs, 0)
    filled[piece.theirs] = start + piece.shape[piece.fused]
    return replace(piece, start=start)


def check_tensors(source: str, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Refuse a source that does not hold exactly the tensors that its config asks for.

    Args:
        source: the source's path, for the message.
        expected: name to shape, from the config.
        found: name to shape, from the source.

    Raises:
        ValueError: naming what is missing, what is left over and what has another shape.
    """
    missing = [name for name in expected if name not in found]
    leftover = sorted(name for name in found if name not in expected)
    misshapen = [
        f"{name} is {list(found[name])} and should be {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    problems = [
        f"{len(names)} {what}: {_listed(names)}"
        for what, names in (
            ("missing", missing),
            ("left over", leftover),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"{source}: the tensors do not match the model config, {'; '.join(problems)}; "
            "check that config and weights belong together"
        )


def _listed(names: Sequence[str]) -> str:
    shown: Iterable[str] = names[:MAX_LISTED]
    more = len(names) - MAX_LISTED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
