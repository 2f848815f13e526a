"""Losses per token. Masking, weighting and summing are the caller's, by the one loss rule.

A model computes its loss by `model.head_loss.op(logits, labels)`. Another one, or one with
options, is put there: `model.head_loss.op = partial(cross_entropy, z_loss=1e-4)`.
"""

import torch.nn.functional as F
from torch import Tensor

from mtron_models.ops import at_least_fp32

NOT_PREDICTED = -100
"""The label of a token that `masked_lm` leaves out, as in Hugging Face's data."""


def cross_entropy(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """Return `-log softmax(logits)[label]` for every token.

    Args:
        logits: `[..., vocab]`; computed in at least fp32.
        labels: `[...]`, int64, each in [0, vocab).
        label_smoothing: share of the target, in [0, 1], that is spread evenly over the vocabulary
            (Szegedy et al., arXiv:1512.00567, section 7).
        z_loss: weight of `logsumexp(logits)**2`, which is added to keep the logits from drifting
            away from 0 (Chowdhery et al., arXiv:2204.02311, section 5, with 1e-4).

    Returns:
        `[...]` in nats, at least fp32.

    Raises:
        ValueError: `label_smoothing` or `z_loss` is out of range.
    """
    _check(label_smoothing, z_loss)
    tokens = logits.flatten(0, -2).to(at_least_fp32(logits.dtype))
    losses = F.cross_entropy(
        tokens, labels.flatten(), reduction="none", label_smoothing=label_smoothing
    )
    if z_loss:
        losses = losses + z_loss * tokens.logsumexp(dim=-1).square()
    return losses.view(labels.shape)


def masked_lm(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """Return `cross_entropy` of the tokens that are to be predicted, and 0 for all others.

    The others get no gradient either. How many there are to predict is the caller's to count.

    Args:
        logits: `[..., vocab]`; computed in at least fp32.
        labels: `[...]`, int64: the token that was masked, or `NOT_PREDICTED`.
        label_smoothing: as of `cross_entropy`.
        z_loss: as of `cross_entropy`.

    Returns:
        `[...]` in nats, at least fp32.

    Raises:
        ValueError: `label_smoothing` or `z_loss` is out of range.

    Reference: Devlin et al., arXiv:1810.04805, section 3.1.
    """
    left_out = labels == NOT_PREDICTED
    losses = cross_entropy(
        logits, labels.masked_fill(left_out, 0), label_smoothing=label_smoothing, z_loss=z_loss
    )
    return losses.masked_fill(left_out, 0.0)


def _check(label_smoothing: float, z_loss: float) -> None:
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: must be in [0, 1], got {label_smoothing}")
    if not 0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss: must be a finite number of at least 0, got {z_loss}")
