"""Score given texts: log-probabilities of their tokens, without generating anything."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtron_models import Context

_TOKENS_AT_ONCE = 512
"""Positions whose logits exist at a time: vocabularies are large."""


@torch.inference_mode()
def score_tokens(
    model: nn.Module, sequences: Sequence[Sequence[int]], max_batch_tokens: int
) -> list[np.ndarray]:
    """Return log p(token[j + 1] | tokens[: j + 1]) for every j of every sequence.

    Args:
        model: a decoder with `backbone` and `loss`, on any device.
        sequences: token ids, at least one each.
        max_batch_tokens: tokens that go through the model at a time, padding included; a longer
            sequence goes alone.

    Returns:
        One array of length n - 1 per sequence, float32 or float64 as the model computes.
    """
    dtype = next(model.parameters()).dtype
    result_dtype = np.float64 if dtype == torch.float64 else np.float32
    scores = [np.empty(0, result_dtype)] * len(sequences)
    for batch in plan_batches([len(sequence) - 1 for sequence in sequences], max_batch_tokens):
        rows = _score_batch(model, [sequences[i] for i in batch])
        for i, row in zip(batch, rows, strict=True):
            scores[i] = row.to("cpu").numpy().astype(result_dtype, copy=False)
    return scores


def plan_batches(lengths: Sequence[int], max_batch_tokens: int) -> list[list[int]]:
    """Group sequences of similar length, longest first, leaving out the empty ones.

    Args:
        lengths: tokens of each sequence.
        max_batch_tokens: most tokens in a group, padded to its longest; a single one may exceed it.

    Returns:
        Groups of indices into `lengths`.
    """
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    for i in order:
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and longest * (len(groups[-1]) + 1) <= max_batch_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _score_batch(model: Any, sequences: list[Sequence[int]]) -> list[Tensor]:
    """Score sequences of at least two tokens together, padded at the end."""
    device = next(model.parameters()).device
    lengths = [len(sequence) - 1 for sequence in sequences]
    inputs = torch.zeros(len(sequences), max(lengths), dtype=torch.int64)
    for row, sequence in zip(inputs, sequences, strict=True):
        row[: len(sequence) - 1] = torch.tensor(sequence[:-1])
    hidden = model.backbone(inputs.to(device), Context())
    # A causal model does not see the padding behind a sequence, and here it is dropped.
    kept = torch.cat([row[:length] for row, length in zip(hidden, lengths, strict=True)])
    labels = torch.tensor([t for sequence in sequences for t in sequence[1:]], device=device)
    pieces = zip(kept.split(_TOKENS_AT_ONCE), labels.split(_TOKENS_AT_ONCE), strict=True)
    losses = torch.cat([model.loss(h[None], y[None])[0] for h, y in pieces])
    return list(losses.neg().split(lengths))
