"""What one step takes and what it returns."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class MicroBatch:
    """The part of a global batch that goes through the model at once.

    All micro-batches of one step have one shape.

    Attributes:
        inputs: tokens `[batch, seq]`, int64.
        labels: next tokens `[batch, seq]`, int64, already shifted by the loader.
        loss_mask: `[batch, seq]`, 1 where the label counts in the loss and 0 elsewhere.
        context: passed to the model as it is.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    context: Any


@dataclass(frozen=True)
class LossStats:
    """The loss of a global batch.

    Attributes:
        loss: mean loss per valid token, in nats.
        num_tokens: valid tokens in the global batch.
    """

    loss: float
    num_tokens: int
