"""What every language model here has in common."""

from typing import Any, Self

from torch import nn

from mtron_models.config import ModelConfig
from mtron_models.context import Context
from mtron_models.layers.loss import HeadLoss
from mtron_models.layout import Layout

NO_CONTEXT = Context()


class BlockModel(nn.Module):
    """A model made of named blocks, any of which may be deleted.

    What is left after deleting is a stage: it takes hidden states where it has no `embed`, and
    returns them where it has no `head`. The names of what is left stay the same.

    Args:
        config: sizes and options.
    """

    embed: nn.Embedding
    head: nn.Linear

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.head_loss = HeadLoss()

    def layout(self) -> Layout:
        """Return the layout table: patterns of parameter names to how they may be cut."""
        return self.config.layout()

    def has(self, name: str) -> bool:
        """Whether the block `name` was not deleted (`del model.head` or `model.head = None`)."""
        return self._modules.get(name) is not None

    def tie(self) -> None:
        """Let the head use the embedding matrix, where the configuration says so."""
        tied = getattr(self.config, "tie_word_embeddings", False)
        if tied and self.has("embed") and self.has("head"):
            self.head.weight = self.embed.weight

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Keep the head tied where `to_empty` and others replace every parameter."""
        super()._apply(fn, recurse)
        self.tie()
        return self
