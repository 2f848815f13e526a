"""Dropout whose mask is known from what an element is, not from who computes it."""

from torch import Tensor, nn

from mtron_models import ops
from mtron_models.context import Context
from mtron_models.random import key_of


class Dropout(nn.Module):
    """Zeroes hidden elements while training, by a mask keyed by step, sample, site and index.

    Args:
        probability: of zeroing an element, in [0, 1).
        site: name of this place in the model, in the manner of parameter names.
    """

    def __init__(self, probability: float, site: str) -> None:
        super().__init__()
        self.probability = probability
        self.site = key_of(f"dropout/{site}")
        self.op = ops.keyed_dropout

    def forward(self, x_BSD: Tensor, context: Context) -> Tensor:
        """Return `[batch, seq, hidden]`, unchanged in evaluation or at probability 0.

        Raises:
            ValueError: training with dropout, and the context has no random key.
        """
        if not self.training or self.probability == 0:
            return x_BSD
        if context.random is None:
            raise ValueError(
                "context.random: needed for training with dropout, got None; "
                "give RandomKey(seed, step, sample_ids)"
            )
        return self.op(x_BSD, self.probability, self.site, context.random)
