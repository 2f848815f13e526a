"""Losses per token. Masking, weighting and summing are the caller's, by the one loss rule."""

from typing import Any

import torch
from torch import Tensor

from mtron_models.ops import at_least_fp32


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `-log softmax(logits)[label]` for every token.

    Computed in at least fp32. Next to the logits, one tensor of their size is made in each of the
    passes, where torch's own function makes two in the backward.

    Args:
        logits: `[..., vocab]`.
        labels: `[...]`, int64, each in [0, vocab).

    Returns:
        `[...]` in nats, at least fp32.
    """
    return _CrossEntropy.apply(logits, labels)


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy whose backward is `(softmax - one_hot) * gradient`, written once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        log_probabilities = torch.log_softmax(logits.to(at_least_fp32(logits.dtype)), dim=-1)
        index = labels[..., None]
        ctx.save_for_backward(log_probabilities, index)
        ctx.dtype = logits.dtype
        return -log_probabilities.gather(-1, index).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        log_probabilities, index = ctx.saved_tensors
        gradient = gradients[0][..., None]
        result = log_probabilities.exp().mul_(gradient)
        return result.scatter_add_(-1, index, -gradient).to(ctx.dtype), None
