"""Activations of feed-forward layers."""

import torch.nn.functional as F
from torch import Tensor


def relu(x: Tensor) -> Tensor:
    """Return `max(x, 0)`."""
    return F.relu(x)


def gelu(x: Tensor) -> Tensor:
    """Return `x * Phi(x)` with the exact normal distribution. Reference: arXiv:1606.08415."""
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """Return the approximation of `gelu` by tanh (GPT-2's `gelu_new`)."""
    return F.gelu(x, approximate="tanh")


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return `silu(gate) * up`, all `[..., F]`. Reference: Shazeer, arXiv:2002.05202."""
    return F.silu(gate) * up


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return `gelu_tanh(gate) * up`, all `[..., F]`. Reference: Shazeer, arXiv:2002.05202."""
    return gelu_tanh(gate) * up
