"""Name tables: which tensor is which in two formats, written once and read in both directions.

A family lists one `Row` per kind of tensor. Expanding the table with the sizes of a model gives
the complete list of its tensors, so whatever a source lacks or has too much of can be named.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product

MAX_LISTED = 8
"""How many tensors an error names before it only counts the others."""


@dataclass(frozen=True)
class Row:
    """One kind of tensor.

    Attributes:
        ours: name in mtron; `{layer}` stands for each layer's index.
        theirs: name in the other format, with the same placeholder.
        shape: the names of the sizes that make its shape.
        unless: name of a flag of the model config; the tensor does not exist where it is true.
        copy_of: our name of the tensor whose values this one repeats where `unless` is true; the
            other format may hold such a copy.
    """

    ours: str
    theirs: str
    shape: tuple[str, ...]
    unless: str | None = None
    copy_of: str | None = None


@dataclass(frozen=True)
class Pair:
    """One tensor of one model.

    Attributes:
        ours: name in mtron, without the kind (`embed.weight`).
        theirs: name in the other format.
        shape: shape, the same in both formats.
    """

    ours: str
    theirs: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class NameTable:
    """The tensors of a model family.

    Attributes:
        rows: one per kind of tensor; no two rows may produce the same name on either side.
        derived: names in the other format of buffers that follow from the config and that old
            files hold beside the weights; they are not converted.
    """

    rows: tuple[Row, ...]
    derived: tuple[str, ...] = ()

    def expand(
        self, sizes: Mapping[str, int], flags: Mapping[str, bool], num_layers: int
    ) -> list[Pair]:
        """Every tensor of one model, in the order of the table; rows of layers layer by layer."""
        rows = [row for row in self.rows if row.unless is None or not flags[row.unless]]
        pairs = [
            Pair(
                row.ours.format(layer=layer),
                row.theirs.format(layer=layer),
                tuple(sizes[size] for size in row.shape),
            )
            for in_layers, group in groupby(rows, lambda row: "{layer}" in row.ours)
            for layer, row in product(range(num_layers if in_layers else 1), list(group))
        ]
        assert len({pair.ours for pair in pairs}) == len(pairs), "our names repeat"
        assert len({pair.theirs for pair in pairs}) == len(pairs), "their names repeat"
        return pairs

    def is_derived(self, theirs: str) -> bool:
        """Whether a name of the other format is a buffer that follows from the config."""
        return any(
            re.fullmatch(re.escape(name).replace(r"\{layer\}", r"\d+"), theirs)
            for name in self.derived
        )


def check_tensors(
    source: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
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
