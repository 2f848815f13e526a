"""Rules of layout tables, with the fields that mtron-parallel reads."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    dim: int = 0
    segments: tuple[int, ...] = ()
    unit: int | tuple[int, ...] = 1
    pad: bool = False
    replicate_if_fewer: bool = False
    axis: str = "tp"
    of: str | tuple[str, ...] = ""


@dataclass(frozen=True)
class Replicate:
    sequence: bool = False
    heads: bool = False
