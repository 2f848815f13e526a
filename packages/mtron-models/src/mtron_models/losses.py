"""Losses per token. Masking, weighting and summing are the caller's, by the one loss rule."""

import torch.nn.functional as F
from torch import Tensor

from mtron_models.ops import at_least_fp32


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `-log softmax(logits)[label]` for every token.

    Args:
        logits: `[..., vocab]`; computed in at least fp32.
        labels: `[...]`, int64, each in [0, vocab).

    Returns:
        `[...]` in nats, at least fp32.
    """
    tokens = logits.flatten(0, -2).to(at_least_fp32(logits.dtype))
    return F.cross_entropy(tokens, labels.flatten(), reduction="none").view(labels.shape)
