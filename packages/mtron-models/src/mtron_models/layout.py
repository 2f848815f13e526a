"""How a parameter may be cut over several devices, as plain data. Imports no torch.

A model's layout table maps patterns of parameter names (matched by `fnmatch.fnmatchcase`, the
first match counts) to `Shard` or `Replicate`. It says what is legal and natural for the model;
a parallelism package reads it and decides. A model never looks at its own table.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Replicate:
    """Every rank holds the whole parameter.

    Attributes:
        sequence: the parameter acts on each token by itself, in a region that may be split along
            the sequence. Then each rank's gradient is a part of the sum.
        heads: the parameter is used between cut projections, on what each rank has of the heads
            (the norm of a head). Each rank's gradient is a part of the sum.
    """

    sequence: bool = False
    heads: bool = False


@dataclass(frozen=True)
class Shard:
    """Every rank holds a part of the parameter, cut along one dim.

    Attributes:
        dim: the dim that is cut, from 0.
        segments: sizes along `dim` of parts that are cut one by one, each rank taking its share
            of each (a fused gate and up projection); empty where the dim is one part.
        unit: elements along `dim` that stay together (head_dim, so that a head is never cut); one
            number for each segment where they differ.
        pad: whether the dim may be padded where the ranks do not divide it.
        replicate_if_fewer: whether several ranks may hold the same unit when there are more ranks
            than units (key and value heads).
        axis: the mesh axis that cuts: "tp", or "ep" for the experts of a mixture.
        of: the configuration's field that counts the units of the dim, or of each segment, for
            messages ("num_attention_heads"); one for each segment where they differ; empty where
            no field does.
        inner: how another dim of the same parameter is cut besides (the width of stacked experts,
            by expert tensor parallelism).
    """

    dim: int
    segments: tuple[int, ...] = ()
    unit: int | tuple[int, ...] = 1
    pad: bool = False
    replicate_if_fewer: bool = False
    axis: Literal["tp", "ep"] = "tp"
    of: str | tuple[str, ...] = ""
    inner: "Shard | None" = None

    def __post_init__(self) -> None:
        if self.dim < 0:
            raise ValueError(f"dim: count dims from the first, got {self.dim}; use 0 or more")
        for name, each in (("unit", self.unit), ("of", self.of)):
            if isinstance(each, tuple) and len(each) != len(self.segments):
                raise ValueError(
                    f"{name}: must be one value, or one for each of the {len(self.segments)} "
                    f"segments, got {each}"
                )
        units = self.unit if isinstance(self.unit, tuple) else (self.unit,) * len(self.segments)
        if isinstance(self.unit, int) and self.unit < 1:
            raise ValueError(f"unit: must be at least 1, got {self.unit}")
        for size, unit in zip(self.segments, units, strict=True):
            if unit < 1:
                raise ValueError(f"unit: must be at least 1 in every segment, got {self.unit}")
            if size < 1 or size % unit:
                raise ValueError(
                    f"segments: every size must be a multiple of unit = {unit}, got {size}"
                )


Layout: TypeAlias = "dict[str, Shard | Replicate]"
"""Patterns of parameter names to how they may be cut."""


def colwise(
    unit: int | tuple[int, ...] = 1,
    *,
    segments: tuple[int, ...] = (),
    replicate_if_fewer: bool = False,
    of: str | tuple[str, ...] = "",
) -> Shard:
    """Cut a linear layer's outputs: rows of its `(out, in)` matrix, or its bias."""
    return Shard(0, segments, unit, replicate_if_fewer=replicate_if_fewer, of=of)


def rowwise(unit: int = 1, *, of: str = "") -> Shard:
    """Cut a linear layer's inputs: columns of its `(out, in)` matrix; outputs are partial sums."""
    return Shard(1, unit=unit, of=of)


def vocab(*, of: str = "") -> Shard:
    """Cut an embedding or an output head by tokens; the vocabulary may be padded."""
    return Shard(0, pad=True, of=of)


def expert(*, of: str = "", inner: Shard | None = None) -> Shard:
    """Cut stacked experts `(experts, ...)`: whole experts go to ranks of the "ep" axis."""
    return Shard(0, axis="ep", of=of, inner=inner)


def sequence() -> Replicate:
    """Keep whole a parameter that acts on each token by itself, such as a norm's weight."""
    return Replicate(sequence=True)


def heads() -> Replicate:
    """Keep whole a parameter that each rank uses for its own heads, such as the norm of a head."""
    return Replicate(heads=True)
