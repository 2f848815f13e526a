"""The BERT encoder: tokens in, logits of masked tokens or of whole rows out.

Reference: Devlin et al., arXiv:1810.04805, section 3. With equal weights the logits are those of
Hugging Face's `BertForMaskedLM`, `BertForPreTraining`, `BertForNextSentencePrediction` and
`BertForSequenceClassification`, and the hidden states those of its `BertModel`.

Shape suffixes: B batch, S sequence, D hidden.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mtron_models import ops
from mtron_models.bert.config import BertConfig
from mtron_models.block_model import NO_CONTEXT, BlockModel
from mtron_models.context import Context
from mtron_models.init import Constant, Normal, Rule
from mtron_models.layers.attention import Attention
from mtron_models.layers.dropout import Dropout
from mtron_models.layers.embedding import PositionedEmbedding
from mtron_models.layers.loss import HeadLoss
from mtron_models.layers.mlp import MLP
from mtron_models.layers.norm import LayerNorm

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": ops.gelu,
    "gelu_new": ops.gelu_tanh,
    "relu": ops.relu,
}


class SegmentedEmbedding(PositionedEmbedding):
    """Looks up tokens and adds learned vectors for each one's position and segment.

    Args:
        config: sizes.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config.vocab_size, config.max_position_embeddings, config.hidden_size)
        self.token_types = nn.Embedding(config.type_vocab_size, config.hidden_size)

    def forward(
        self, input: Tensor, positions: Tensor | None = None, token_types: Tensor | None = None
    ) -> Tensor:
        """Return `[batch, seq, hidden]`.

        Args:
            input: as of `PositionedEmbedding`.
            positions: as of `PositionedEmbedding`; by keyword.
            token_types: the segment of each token, `[batch, seq]`, int64; None for 0 everywhere;
                by keyword.
        """
        embedded = super().forward(input, positions)
        if token_types is None:
            return embedded + self.token_types.weight[0]
        return embedded + self.token_types(token_types)


class EncoderLayer(nn.Module):
    """Attention, then a feed-forward layer; each is added to its input, and the sum normalized."""

    def __init__(self, config: BertConfig, index: int) -> None:
        super().__init__()
        hidden, heads = config.hidden_size, config.num_attention_heads
        self.self_attn = Attention(
            hidden,
            heads,
            heads,
            config.head_dim,
            spec=config.attention_spec(index),
            bias=True,
            output_bias=True,
            site=f"layers.{index}.self_attn",
        )
        self.self_attn_dropout = Dropout(config.hidden_dropout_prob, f"layers.{index}.self_attn")
        self.post_attention_layernorm = LayerNorm(hidden, config.layer_norm_eps)
        self.mlp = MLP(hidden, config.intermediate_size, op=ACTIVATIONS[config.hidden_act])
        self.mlp_dropout = Dropout(config.hidden_dropout_prob, f"layers.{index}.mlp")
        self.post_feedforward_layernorm = LayerNorm(hidden, config.layer_norm_eps)

    def forward(self, hidden_BSD: Tensor, context: Context) -> Tensor:
        """Return the hidden states after this layer, `[batch, seq, hidden]`."""
        attended = self.self_attn_dropout(self.self_attn(hidden_BSD, None, context), context)
        hidden_BSD = self.post_attention_layernorm(hidden_BSD + attended)
        transformed = self.mlp_dropout(self.mlp(hidden_BSD), context)
        return self.post_feedforward_layernorm(hidden_BSD + transformed)


class Pooler(nn.Module):
    """Makes one vector of a row, from its first token."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        """Return `[batch, hidden]`, between -1 and 1."""
        return torch.tanh(self.dense(hidden_BSD[:, 0]))


class HeadTransform(nn.Module):
    """What comes between the encoder and the matrix of the masked-LM head."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.op = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        """Transform `[batch, seq, hidden]`, each token by itself."""
        return self.norm(self.op(self.dense(hidden_BSD)))


class Bert(BlockModel):
    """An encoder whose tokens see those on both sides, and the heads that its task needs.

    Blocks: `embed` with `embed_norm`, `layers`, and the heads: `pooler` with `row_head` on it,
    `head_transform` with `head` on it.

    Args:
        config: sizes, heads and options.
    """

    config: BertConfig

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        hidden = config.hidden_size
        self.embed = SegmentedEmbedding(config)
        self.embed_norm = LayerNorm(hidden, config.layer_norm_eps)
        self.embed_dropout = Dropout(config.hidden_dropout_prob, "embed")
        self.layers = nn.ModuleDict(
            {str(index): EncoderLayer(config, index) for index in range(config.num_hidden_layers)}
        )
        if "pooler" in config.heads:
            self.pooler = Pooler(hidden)
        if config.num_row_classes:
            dropout = config.hidden_dropout_prob
            if "classifier" not in config.heads:
                dropout = 0.0
            elif config.classifier_dropout is not None:
                dropout = config.classifier_dropout
            self.row_dropout = Dropout(dropout, "row_head")
            self.row_head = nn.Linear(hidden, config.num_row_classes)
            self.row_loss = HeadLoss()
        if "masked_lm" in config.heads:
            self.head_transform = HeadTransform(config)
            self.head = nn.Linear(hidden, config.vocab_size)
        self.tie()

    def forward(
        self, inputs: Tensor, context: Context = NO_CONTEXT
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return what the heads make of the inputs.

        Args:
            inputs: tokens `[batch, seq]`, int64; hidden states `[batch, seq, hidden]` where the
                embedding was deleted.
            context: positions, documents, token types, randomness. Padding is a document of its
                own (`cu_seqlens`).

        Returns:
            Logits of tokens `[batch, seq, vocab]` (masked LM), logits of rows `[batch, classes]`
            (next sentence, classifier), both in this order where both heads are there; without a
            head the hidden states `[batch, seq, hidden]`.
        """
        hidden_BSD = self.backbone(inputs, context)
        if self.has("head") and self.has("row_head"):
            return self.logits(hidden_BSD), self.row_logits(hidden_BSD, context)
        if self.has("head"):
            return self.logits(hidden_BSD)
        return self.row_logits(hidden_BSD, context) if self.has("row_head") else hidden_BSD

    def backbone(self, inputs: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """Return the hidden states `[batch, seq, hidden]` that the heads take.

        Args:
            inputs: as of `forward`.
            context: as of `forward`.
        """
        hidden_BSD = inputs
        if self.has("embed"):
            embedded = self.embed(
                inputs, positions=context.positions, token_types=context.token_types
            )
            hidden_BSD = self.embed_dropout(self.embed_norm(embedded), context)
        if self.has("layers"):
            for layer in self.layers.values():
                hidden_BSD = layer(hidden_BSD, context)
        return hidden_BSD

    def logits(self, hidden_BSD: Tensor) -> Tensor:
        """Return the logits `[batch, seq, vocab]` of hidden states of `backbone` (masked LM)."""
        return self.head_loss.logits(self.head, self.head_transform(hidden_BSD))

    def row_logits(self, hidden_BSD: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """Return the logits `[batch, classes]` of whole rows (next sentence, classifier).

        Args:
            hidden_BSD: of `backbone`.
            context: for dropout.
        """
        return self.row_loss.logits(self.row_head, self._row_states(hidden_BSD, context))[:, 0]

    def _row_states(self, hidden_BSD: Tensor, context: Context) -> Tensor:
        """Return what the head on the pooler takes, as rows of one token, `[batch, 1, hidden]`."""
        return self.row_dropout(self.pooler(hidden_BSD)[:, None], context)

    def loss(self, hidden_BSD: Tensor, labels_BS: Tensor) -> Tensor:
        """Return the masked-LM loss of every token, `[batch, seq]` in nats, at least fp32.

        Args:
            hidden_BSD: of `backbone`.
            labels_BS: the token that was there before masking, int64; a valid token also where it
                does not count.
        """
        return self.head_loss(self.head, self.head_transform(hidden_BSD), labels_BS)

    def loss_of_rows(
        self, hidden_BSD: Tensor, labels_B: Tensor, context: Context = NO_CONTEXT
    ) -> Tensor:
        """Return the loss of every row, `[batch]` in nats, at least fp32.

        Args:
            hidden_BSD: of `backbone`.
            labels_B: the class of each row, int64.
            context: for dropout.

        Raises:
            ValueError: there is only one class, so that nothing can be told apart.
        """
        if self.row_head.out_features == 1:
            raise ValueError(
                "num_labels: the cross-entropy needs at least 2 classes, got 1; "
                "take row_logits and a loss of your own"
            )
        states_B1D = self._row_states(hidden_BSD, context)
        return self.row_loss(self.row_head, states_B1D, labels_B[:, None])[:, 0]

    def train_loss(
        self,
        inputs: Tensor,
        labels: Tensor,
        weights: Tensor,
        context: Context = NO_CONTEXT,
        row_labels_B: Tensor | None = None,
        row_weights_B: Tensor | None = None,
    ) -> Tensor:
        """Return the sum of the losses, each times its weight: a scalar.

        Args:
            inputs: as of `forward`.
            labels: as of `loss`, `[batch, seq]`; without a masked-LM head the classes `[batch]`.
            weights: one for each label: 1 / (labels of the global batch that count) where it
                counts (a masked token), else 0.
            context: as of `forward`.
            row_labels_B: the class of each row, where there is also a masked-LM head; None leaves
                the head on the pooler out.
            row_weights_B: one for each of them: 1 / (rows of the global batch).

        Raises:
            ValueError: labels of rows come without weights, or twice.
        """
        if (row_labels_B is None) != (row_weights_B is None):
            raise ValueError(
                "row_labels_B: must come with row_weights_B, got one of them; give both"
            )
        hidden_BSD = self.backbone(inputs, context)
        if not self.has("head"):
            if row_labels_B is not None:
                raise ValueError(
                    "row_labels_B: without a masked-LM head the classes are the labels, got both; "
                    "leave it out"
                )
            return (self.loss_of_rows(hidden_BSD, labels, context) * weights).sum()
        loss = (self.loss(hidden_BSD, labels) * weights).sum()
        if row_labels_B is None or row_weights_B is None:
            return loss
        return loss + (self.loss_of_rows(hidden_BSD, row_labels_B, context) * row_weights_B).sum()

    def init_rules(self) -> dict[str, Rule]:
        """Return patterns of parameter names to how they are initialized; the first one counts."""
        return {
            "*norm.weight": Constant(1.0),
            "*.bias": Constant(0.0),
            "*": Normal(self.config.initializer_range),
        }
