"""Types in which to compute."""

import torch


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which to compute: fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)
