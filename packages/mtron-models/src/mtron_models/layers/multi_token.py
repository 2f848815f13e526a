"""Prediction of several tokens at once.

Shape suffixes: B batch, S sequence, D hidden, K tokens ahead.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtron_models.context import Context, FurtherLabels
from mtron_models.layers.norm import RMSNorm


class MultiTokenLayer(nn.Module):
    """From a hidden state that predicts a token, and that token, to one that predicts the next.

    As in the published weights, the embedding comes first in `eh_proj`, and `norm` is applied
    before the head and before the next such layer; the paper's equations have the other order and
    leave the norm out.

    Args:
        hidden_size: width of the residual stream.
        eps: of the norms.
        block: a decoder layer, called as `block(hidden, table, context)`.

    Reference: DeepSeek-V3, arXiv:2412.19437, equations 21 and 22.
    """

    def __init__(self, hidden_size: int, eps: float, block: nn.Module) -> None:
        super().__init__()
        self.enorm = RMSNorm(hidden_size, eps)
        self.hnorm = RMSNorm(hidden_size, eps)
        self.eh_proj = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.block = block
        self.norm = RMSNorm(hidden_size, eps)

    def forward(
        self, embedded_BSD: Tensor, hidden_BSD: Tensor, table: Tensor, context: Context
    ) -> Tensor:
        """Return hidden states `[batch, seq, hidden]` that the head takes.

        Args:
            embedded_BSD: embedding of the token that was to be predicted at each place.
            hidden_BSD: hidden states from which the head predicts it.
            table: of the rotary positions.
            context: of the forward pass.
        """
        both = torch.cat((self.enorm(embedded_BSD), self.hnorm(hidden_BSD)), dim=-1)
        return self.norm(self.block(self.eh_proj(both), table, context))


class MultiTokenPrediction(nn.Module):
    """Layers beyond the last one, each of which predicts one token further ahead.

    They train the model to plan ahead, and can draft tokens in generation; the model's own logits
    do not depend on them. They use the model's embedding, which stays here when the model's own
    reference is deleted, as on the last stage of a pipeline.

    Args:
        embed: of the model.
        layers: the first one predicts the token after the next one, and so on.
    """

    def __init__(self, embed: nn.Embedding, layers: Sequence[MultiTokenLayer]) -> None:
        super().__init__()
        self.embed = embed
        self.layers = nn.ModuleDict({str(index): layer for index, layer in enumerate(layers)})

    def labels_of(self, context: Context) -> FurtherLabels:
        """Return the labels that these layers train on.

        Raises:
            ValueError: the context has none, or not one for each layer.
        """
        further, expected = context.further_labels, len(self.layers)
        if further is None:
            raise ValueError(
                f"context.further_labels: needed to train {expected} layers that predict further "
                "tokens, got None; give FurtherLabels(labels, factors), or set "
                "num_nextn_predict_layers = 0 in the model's configuration"
            )
        for name in ("labels", "factors"):
            if (found := getattr(further, name).shape[-1]) != expected:
                raise ValueError(
                    f"context.further_labels.{name}: must have {expected} for each token, one for "
                    f"each layer that predicts further tokens, got {found}"
                )
        return further

    def forward(
        self, hidden_BSD: Tensor, tokens_KBS: Sequence[Tensor], table: Tensor, context: Context
    ) -> list[Tensor]:
        """Return the hidden states from which the head predicts tokens ahead, for each layer.

        Args:
            hidden_BSD: of the model's last norm.
            tokens_KBS: for each layer the token that the layer before was to predict at each
                place, `[batch, seq]`; for the first one the next token.
            table: of the rotary positions.
            context: of the forward pass.
        """
        states = []
        for layer, tokens_BS in zip(self.layers.values(), tokens_KBS, strict=True):
            hidden_BSD = layer(self.embed(tokens_BS), hidden_BSD, table, context)
            states.append(hidden_BSD)
        return states
