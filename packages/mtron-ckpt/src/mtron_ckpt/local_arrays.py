"""The arrays that a caller wants saved, checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mtron_ckpt.arrays import Arrays, ArraySource, LocalArray
from mtron_ckpt.boxes import Box, Shape, find_gap, find_misfit
from mtron_ckpt.dtypes import dtype_name
from mtron_ckpt.names import check_array_name

Blocks = Sequence[tuple[Box, ArraySource]]
"""Rectangles of an array and where their values come from."""


class ArrayForm(NamedTuple):
    """What an array is, whoever holds it: name, zarr v3 name of its element type, global shape."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True, eq=False)
class HeldArray:
    """The rectangles of an array that this process holds."""

    form: ArrayForm
    blocks: Blocks


def check_held(arrays: Arrays) -> dict[str, HeldArray]:
    """Check what one of several writers holds; names without blocks are left out.

    Raises:
        ValueError: naming the array: a bad name, an element type that cannot be stored, blocks
            that disagree, overlap or lie outside.
    """
    given = {name: _blocks_of(value) for name, value in arrays.items()}
    return {name: _check_array(name, v, find_misfit) for name, v in given.items() if v}


def check_complete(arrays: Arrays) -> dict[str, HeldArray]:
    """Check what a sole writer holds.

    Raises:
        ValueError: naming the array: as `check_held`, and blocks that leave something out.
    """
    return {n: _check_array(n, _blocks_of(value), find_gap) for n, value in arrays.items()}


def _blocks_of(value: LocalArray | Sequence[LocalArray]) -> list[LocalArray]:
    return [value] if isinstance(value, LocalArray) else list(value)


def _check_array(
    name: str,
    locals_: Sequence[LocalArray],
    find_problem: Callable[[Shape, Sequence[Box]], str | None],
) -> HeldArray:
    check_array_name(name)
    if not locals_:
        raise ValueError(f"{name}: no block was given; give the blocks that make up the array")
    shape = _integers(locals_[0].global_shape)
    dtype = locals_[0].data.dtype
    if not isinstance(dtype, np.dtype):
        raise ValueError(
            f"{name}: not a numpy array, got {type(locals_[0].data).__name__}; "
            "convert tensors with mtron_ckpt.torch_io.from_torch"
        )
    for local in locals_:
        if _integers(local.global_shape) != shape or local.data.dtype != dtype:
            raise ValueError(
                f"{name}: all blocks must agree on element type and global shape, got {dtype} "
                f"{shape} and {local.data.dtype} {tuple(local.global_shape)}"
            )
    blocks = [(Box(_integers(x.offset), _integers(x.data.shape)), x.data) for x in locals_]
    if problem := find_problem(shape, [box for box, _ in blocks]):
        raise ValueError(
            f"{name}: {problem}, got an array of shape {shape}; give every element exactly once"
        )
    return HeldArray(ArrayForm(name, dtype_name(dtype, name), shape), blocks)


def _integers(values: Sequence[int]) -> Shape:
    """Return plain integers: callers may have numpy's."""
    return tuple(int(value) for value in values)
