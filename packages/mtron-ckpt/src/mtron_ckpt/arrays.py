"""What a caller hands to `save` and what it learns from a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


class ArraySource(Protocol):
    """Anything that knows its shape and dtype and becomes a numpy array when asked.

    A numpy array is one. Other classes may load or compute their values in `__array__`, which
    `save` calls when it is about to stage them, holding one array at a time.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type of the values."""
        ...

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """Return the values."""
        ...


@dataclass(frozen=True, eq=False)
class LocalArray:
    """A rectangle of a global array that this process holds.

    Attributes:
        data: the values, of any memory order; bfloat16 and fp8 are `ml_dtypes` arrays.
        global_shape: shape of the whole array.
        offset: where `data` begins in it, per dim.
    """

    data: ArraySource
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]

    @classmethod
    def whole(cls, data: ArraySource) -> "LocalArray":
        """The rectangle that is the whole array."""
        return cls(data, tuple(data.shape), (0,) * len(data.shape))


@dataclass(frozen=True)
class Metadata:
    """Everything in a checkpoint that is not an array.

    Attributes:
        step: optimizer steps done; names the directory.
        config: the run's configuration, JSON-able.
        state: JSON-able values by name, each written to `state/<name>.json`.
        layout: how the saving run was laid out over processes, JSON-able.
        assets: files that travel with the checkpoint, such as `tokenizer.json`, by name.
    """

    step: int
    config: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    layout: Mapping[str, Any] = field(default_factory=dict)
    assets: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class ArrayInfo:
    """Element type and global shape of a stored array."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


Arrays = Mapping[str, LocalArray | Sequence[LocalArray]]
"""What `save` takes: for each name, the rectangles that together are the whole array."""
