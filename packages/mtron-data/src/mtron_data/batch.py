"""The arrays that a model trains on."""

from typing import TypedDict

import numpy as np


class Batch(TypedDict):
    """Samples as arrays; `batch` rows of `seq` tokens.

    `tokens`, `labels`, `positions` are int64 `[batch, seq]`; `labels[b, i]` is the token after
    `tokens[b, i]`. `loss_mask` is float32 `[batch, seq]`, 1 where the label counts and 0 on
    padding. `sample_ids` is int64 `[batch]`, the global sample index of each row. `cu_seqlens` is
    int32 `[documents + 1]`: where documents begin in the flattened `[batch * seq]` (each row
    begins one), and `batch * seq` at the end. `max_seqlen` is the longest of them.
    """

    tokens: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray
    positions: np.ndarray
    sample_ids: np.ndarray
    cu_seqlens: np.ndarray
    max_seqlen: int


class Sample(TypedDict):
    """One sample as arrays: as `Batch`, without the batch dimension."""

    tokens: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray
    positions: np.ndarray
    sample_id: int
    cu_seqlens: np.ndarray
    max_seqlen: int
