"""What every decoder-only language model here has in common."""

from abc import abstractmethod

from torch import Tensor

from mtron_models.block_model import NO_CONTEXT, BlockModel
from mtron_models.context import Context
from mtron_models.init import Rule


class CausalLM(BlockModel):
    """Tokens in, logits of the next tokens out.

    A family makes the blocks `embed`, `layers` (a `ModuleDict` keyed by index), `norm` and `head`
    and writes `backbone`. Any of them, and any of the layers, may be deleted: what is left is a
    stage, which takes hidden states where it has no `embed` and returns them where it has no
    `head`.

    Args:
        config: sizes and options.
    """

    @abstractmethod
    def backbone(self, inputs: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """Return the hidden states `[batch, seq, hidden]` that the head takes.

        Args:
            inputs: as of `forward`.
            context: as of `forward`.
        """

    @abstractmethod
    def init_rules(self) -> dict[str, Rule]:
        """Return patterns of parameter names to how they are initialized; the first one counts."""

    def forward(self, inputs: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """Return logits `[batch, seq, vocab]`, or hidden states where the head was deleted.

        Args:
            inputs: tokens `[batch, seq]`, int64; hidden states `[batch, seq, hidden]` where the
                embedding was deleted.
            context: positions, documents, randomness, caches.
        """
        hidden_BSD = self.backbone(inputs, context)
        return self.logits(hidden_BSD) if self.has("head") else hidden_BSD

    def logits(self, hidden_BSD: Tensor) -> Tensor:
        """Return logits `[batch, seq, vocab]`; `head_loss` knows their bound, if there is one."""
        return self.head_loss.logits(self.head, hidden_BSD)

    def loss(self, hidden_BSD: Tensor, labels_BS: Tensor) -> Tensor:
        """Return the loss of every token, `[batch, seq]` in nats, at least fp32.

        Args:
            hidden_BSD: of `backbone`.
            labels_BS: the token that should come next, int64; already shifted, and a valid token
                also where it does not count.
        """
        return self.head_loss(self.head, hidden_BSD, labels_BS)

    def train_loss(
        self, inputs: Tensor, labels_BS: Tensor, weights_BS: Tensor, context: Context = NO_CONTEXT
    ) -> Tensor:
        """Return the sum of the tokens' losses, each times its weight: a scalar.

        Args:
            inputs: as of `forward`.
            labels_BS: as of `loss`.
            weights_BS: 1 / (valid tokens of the global batch) where a token counts, else 0.
            context: as of `forward`.
        """
        return (self.loss(self.backbone(inputs, context), labels_BS) * weights_BS).sum()
