"""Progress of a conversion, in bytes."""

from collections.abc import Callable, Mapping

import numpy as np

from mtron_ckpt.arrays import ArrayInfo

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes to do."""


def reading_progress(
    progress: Progress | None, tensors: Mapping[str, ArrayInfo]
) -> Callable[[str, np.ndarray], np.ndarray]:
    """Makes a function that counts each tensor passed through it and returns it.

    Args:
        progress: told about bytes done; may be None.
        tensors: all tensors that will pass.
    """
    total = sum(info.size_bytes for info in tensors.values())
    done = 0

    def report(name: str, data: np.ndarray) -> np.ndarray:
        nonlocal done
        done += tensors[name].size_bytes
        if progress is not None:
            progress(done, total)
        return data

    return report
