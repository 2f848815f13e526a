"""Batches as torch tensors. The only module that needs torch (the extra `torch`)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

try:
    import torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "mtron_data.torch_io needs torch; install it with `pip install mtron-data[torch]`",
        name="torch",
    ) from error


def to_torch(batch: Mapping[str, Any]) -> dict[str, torch.Tensor | int]:
    """Turn a batch (or sample) of arrays into CPU tensors that share their memory.

    Args:
        batch: arrays and integers by name, see `Batch`.

    Returns:
        The same names; each array as a tensor of its dtype and shape, integers as they are.
    """
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in batch.items()
    }
