"""The configuration of the BERT family. Imports no torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from mtron_models.attention_spec import AttentionSpec
from mtron_models.bert.layout import layout
from mtron_models.config import ModelConfig
from mtron_models.decoder_config import Shapes, token_problems
from mtron_models.layout import Layout

Head: TypeAlias = Literal["pooler", "masked_lm", "next_sentence", "classifier"]

ARCHITECTURES: dict[str, tuple[Head, ...]] = {
    "BertModel": ("pooler",),
    "BertForMaskedLM": ("masked_lm",),
    "BertForPreTraining": ("pooler", "masked_lm", "next_sentence"),
    "BertForNextSentencePrediction": ("pooler", "next_sentence"),
    "BertForSequenceClassification": ("pooler", "classifier"),
}
"""The classes of Hugging Face that a model here can be, and the heads that each one has."""


_WITHOUT_EFFECT = "chunk_size_feed_forward"
"""A key that says how many tokens a library works on at once."""


class BertConfig(ModelConfig, frozen=True):
    """BERT (arXiv:1810.04805): post-norm layers, learned positions, segments, GELU, biases."""

    honoured: ClassVar[dict[str, Any]] = {
        "add_cross_attention": False,
        "is_decoder": False,
        "is_encoder_decoder": False,
        "position_embedding_type": "absolute",
    }

    model_type: Literal["bert"] = "bert"
    """The family."""
    heads: tuple[Head, ...] = ("masked_lm",)
    """What stands on the encoder: "pooler" (the first token of a row, transformed), "masked_lm"
    (tokens of the vocabulary), and on the pooler "next_sentence" (2 classes: whether the second
    sentence follows the first, or their order) or "classifier" (num_labels classes). A Hugging
    Face `config.json` says it by `architectures`."""
    num_labels: int = Field(default=2, ge=1)
    """Classes of the classifier."""
    vocab_size: int = Field(default=30522, ge=1)
    """Rows of the embedding: how many different tokens there are."""
    hidden_size: int = Field(default=768, ge=1)
    """Width of the residual stream."""
    num_hidden_layers: int = Field(default=12, ge=1)
    """Encoder layers."""
    num_attention_heads: int = Field(default=12, ge=1)
    """Attention heads per layer; they divide hidden_size."""
    intermediate_size: int = Field(default=3072, ge=1)
    """Width of the feed-forward block between its projections."""
    hidden_act: Literal["gelu", "gelu_new", "relu"] = "gelu"
    """Activation of the feed-forward block and of the masked-LM head: exact GELU, its
    approximation by tanh, or ReLU."""
    hidden_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    """Probability of zeroing an element of the embedding's output and of each residual branch
    while training."""
    attention_probs_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    """Probability of zeroing an attention weight while training."""
    classifier_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Probability of zeroing an element of what the classifier takes while training; None for
    hidden_dropout_prob."""
    max_position_embeddings: int = Field(default=512, ge=1)
    """Longest sequence, in tokens: rows of the table of positions."""
    type_vocab_size: int = Field(default=2, ge=1)
    """Kinds of segments: rows of the table of token types."""
    initializer_range: float = Field(default=0.02, gt=0, allow_inf_nan=False)
    """Standard deviation of the initial matrices."""
    layer_norm_eps: float = Field(default=1e-12, gt=0, allow_inf_nan=False)
    """Added to the variance in every LayerNorm."""
    tie_word_embeddings: bool = True
    """Whether the masked-LM head uses the embedding matrix."""
    bos_token_id: int | None = Field(default=None, ge=0)
    """Token that begins a document, if any."""
    eos_token_id: int | None = Field(default=None, ge=0)
    """Token that ends a document, if any."""
    pad_token_id: int | None = Field(default=0, ge=0)
    """Token that fills batches, if any."""

    @classmethod
    def in_our_words(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `values` with `heads` by `architectures` and `num_labels` by `id2label`.

        Args:
            values: keys and values of a `config.json`, or of our own.

        Raises:
            ValueError: the architecture is not one of `ARCHITECTURES`.
        """
        ours = {name: value for name, value in values.items() if name != _WITHOUT_EFFECT}
        architectures = ours.get("architectures")
        if architectures and "heads" not in ours:
            if list(architectures)[1:] or architectures[0] not in ARCHITECTURES:
                raise ValueError(
                    f"architectures: must be one of {', '.join(ARCHITECTURES)}, "
                    f"got {architectures!r}"
                )
            ours["heads"] = ARCHITECTURES[architectures[0]]
        if ours.get("id2label") and "num_labels" not in ours:
            ours["num_labels"] = len(ours["id2label"])
        return ours

    @model_validator(mode="after")
    def _check(self) -> "BertConfig":
        problems = [*self._head_problems(), *self._size_problems(), *token_problems(self)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _head_problems(self) -> list[str]:
        problems = [
            f"heads: {name!r} needs 'pooler', got {self.heads!r}; add it"
            for name in ("next_sentence", "classifier")
            if name in self.heads and "pooler" not in self.heads
        ]
        if "next_sentence" in self.heads and "classifier" in self.heads:
            problems.append(
                "heads: only one of 'next_sentence' and 'classifier' may be there, "
                f"got {self.heads!r}"
            )
        if len(set(self.heads)) < len(self.heads):
            problems.append(f"heads: names one twice, got {self.heads!r}")
        return problems

    def _size_problems(self) -> list[str]:
        problems = []
        if self.hidden_size % self.num_attention_heads:
            fits = -(-self.hidden_size // self.num_attention_heads) * self.num_attention_heads
            problems.append(
                f"hidden_size: must be a multiple of num_attention_heads = "
                f"{self.num_attention_heads}, got {self.hidden_size}; use {fits}"
            )
        return problems

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_row_classes(self) -> int:
        """Classes that the head on the pooler tells apart; 0 where there is none."""
        if "next_sentence" in self.heads:
            return 2
        return self.num_labels if "classifier" in self.heads else 0

    def attention_spec(self, layer: int) -> AttentionSpec:
        """Return what attention does in a layer.

        Args:
            layer: index of the layer; all are alike.
        """
        del layer
        return AttentionSpec(causal=False, dropout=self.attention_probs_dropout_prob)

    def layer_shapes(self, layer: int) -> Shapes:
        """Return the shape of every parameter of a layer, by its name within it.

        Args:
            layer: index of the layer; all are alike.
        """
        del layer
        hidden, intermediate = self.hidden_size, self.intermediate_size
        shapes: Shapes = {}
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes |= _linear(f"self_attn.{name}", hidden, hidden)
        shapes |= _norm("post_attention_layernorm", hidden)
        shapes |= _linear("mlp.up_proj", intermediate, hidden)
        shapes |= _linear("mlp.down_proj", hidden, intermediate)
        return shapes | _norm("post_feedforward_layernorm", hidden)

    def parameter_shapes(self) -> Shapes:
        """Return the global shape of every parameter by name, in the model's order.

        Matrices are `(out, in)`. A tied head has only its bias: its matrix is `embed.weight`.
        """
        hidden = self.hidden_size
        shapes: Shapes = {
            "embed.weight": (self.vocab_size, hidden),
            "embed.positions.weight": (self.max_position_embeddings, hidden),
            "embed.token_types.weight": (self.type_vocab_size, hidden),
            **_norm("embed_norm", hidden),
        }
        for index in range(self.num_hidden_layers):
            layer = self.layer_shapes(index)
            shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
        if "pooler" in self.heads:
            shapes |= _linear("pooler.dense", hidden, hidden)
        if self.num_row_classes:
            shapes |= _linear("row_head", self.num_row_classes, hidden)
        if "masked_lm" in self.heads:
            shapes |= _linear("head_transform.dense", hidden, hidden)
            shapes |= _norm("head_transform.norm", hidden)
            shapes |= _linear("head", self.vocab_size, hidden)
            if self.tie_word_embeddings:
                del shapes["head.weight"]
        return shapes

    def layout(self) -> Layout:
        """Return the layout table: patterns of parameter names to how they may be cut."""
        return layout(self)

    def forward_flops_per_token(self, seq_len: int) -> int:
        """Return `2 * matrix elements + layers * 4 * seq_len * hidden_size`, and the row's share.

        The matrices are the projections of every layer and the masked-LM head, also when it is
        tied. A head on the pooler works once per row: its operations are divided over the row's
        tokens, and what remains is rounded up.

        Args:
            seq_len: tokens in the sequence.
        """
        hidden = self.hidden_size
        layer = 4 * hidden * hidden + 2 * hidden * self.intermediate_size
        per_token = self.num_hidden_layers * (2 * layer + 4 * seq_len * hidden)
        if "masked_lm" in self.heads:
            per_token += 2 * hidden * (hidden + self.vocab_size)
        per_row = 2 * hidden * (hidden + self.num_row_classes) if self.num_row_classes else 0
        return per_token - (-per_row // seq_len)


def _linear(name: str, size: int, width: int) -> Shapes:
    return {f"{name}.weight": (size, width), f"{name}.bias": (size,)}


def _norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
