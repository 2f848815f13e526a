"""The loss as a module, so that its op can be exchanged."""

from torch import Tensor, nn

from mtron_models import losses


class CrossEntropy(nn.Module):
    """Cross-entropy of every token. Has no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.op = losses.cross_entropy

    def forward(self, logits_BSV: Tensor, labels_BS: Tensor) -> Tensor:
        """Return `[batch, seq]` in nats, at least fp32."""
        return self.op(logits_BSV, labels_BS)
