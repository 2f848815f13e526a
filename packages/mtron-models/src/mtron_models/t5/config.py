"""The configuration of the T5 family. Imports no torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from mtron_models.attention_spec import AttentionSpec
from mtron_models.config import ModelConfig
from mtron_models.decoder_config import Shapes, token_problems
from mtron_models.layout import Layout
from mtron_models.t5.layout import layout

_DERIVED = {
    "relu": {"dense_act_fn": "relu", "is_gated_act": False},
    "gated-gelu": {"dense_act_fn": "gelu_new", "is_gated_act": True},
}
"""What old versions of Hugging Face's configuration write besides `feed_forward_proj`."""

_NO_EFFECT = ("classifier_dropout", "n_positions", "output_past")
"""Keys that say nothing about a model that generates."""


def _as_many_as_encoder_layers(values: dict[str, Any]) -> int:
    return values["num_layers"]


def _as_tied(values: dict[str, Any]) -> bool:
    return values["tie_word_embeddings"]


class T5Config(ModelConfig, frozen=True):
    """T5 (arXiv:1910.10683), its version 1.1 and Flan-T5; fields are those of Hugging Face."""

    honoured: ClassVar[dict[str, Any]] = {
        "add_cross_attention": False,
        "is_decoder": False,
        "is_encoder_decoder": True,
    }

    model_type: Literal["t5"] = "t5"
    """The family."""
    vocab_size: int = Field(default=32128, ge=1)
    """Rows of the embedding: how many different tokens there are."""
    d_model: int = Field(default=512, ge=1)
    """Width of the residual streams."""
    d_kv: int = Field(default=64, ge=1)
    """Width of one attention head."""
    d_ff: int = Field(default=2048, ge=1)
    """Width of the feed-forward block between its projections."""
    num_layers: int = Field(default=6, ge=1)
    """Encoder layers."""
    num_decoder_layers: int = Field(default_factory=_as_many_as_encoder_layers, ge=1)
    """Decoder layers. Default: as many as encoder layers."""
    num_heads: int = Field(default=8, ge=1)
    """Attention heads per layer."""
    relative_attention_num_buckets: int = Field(default=32, ge=4)
    """Distances of tokens that are told apart; a multiple of 4, because half of them are for
    either direction, and half of these for single distances."""
    relative_attention_max_distance: int = Field(default=128, ge=2)
    """From here on distances are not told apart."""
    dropout_rate: float = Field(default=0.1, ge=0, lt=1)
    """Probability of zeroing, while training, an element of the embeddings' outputs, of each
    residual branch, of the feed-forward blocks' inside and of the final norms' outputs, and of
    zeroing an attention weight."""
    layer_norm_epsilon: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    """Added to the mean square in every RMSNorm."""
    initializer_factor: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Factor of all initial values."""
    feed_forward_proj: Literal["relu", "gated-gelu"] = "relu"
    """The feed-forward block: ReLU (T5), or a gate through GELU (version 1.1)."""
    tie_word_embeddings: bool = True
    """Whether the head uses the embedding matrix (T5) or has its own (version 1.1)."""
    scale_decoder_outputs: bool = Field(default_factory=_as_tied)
    """Whether hidden states are multiplied by d_model ** -0.5 before the head. Default: where
    the head is tied."""
    decoder_start_token_id: int | None = Field(default=None, ge=0)
    """Token that the decoder's input begins with, if it is known."""
    bos_token_id: int | None = Field(default=None, ge=0)
    """Token that begins a document, if any."""
    eos_token_id: int | None = Field(default=1, ge=0)
    """Token that ends a document, if any."""
    pad_token_id: int | None = Field(default=0, ge=0)
    """Token that fills batches, if any."""

    @classmethod
    def in_our_words(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `values` without what follows from other keys or concerns other tasks.

        Args:
            values: keys and values of a `config.json`, or of our own.

        Raises:
            ValueError: a key contradicts `feed_forward_proj`.
        """
        kind = values.get("feed_forward_proj", "relu")
        problems = [
            f"{name}: contradicts feed_forward_proj = {kind!r}, got {values[name]!r}; use {value!r}"
            for name, value in _DERIVED.get(kind, {}).items()
            if values.get(name, value) != value
        ]
        if problems:
            raise ValueError("\n".join(problems))
        dropped = (*_NO_EFFECT, *_DERIVED["relu"])
        return {name: value for name, value in values.items() if name not in dropped}

    @model_validator(mode="after")
    def _check(self) -> "T5Config":
        buckets, furthest = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        )
        problems = token_problems(self)
        if (
            self.decoder_start_token_id is not None
            and self.decoder_start_token_id >= self.vocab_size
        ):
            problems.append(
                "decoder_start_token_id: is not a token of the vocabulary, got "
                f"{self.decoder_start_token_id}; use at most vocab_size - 1 = {self.vocab_size - 1}"
            )
        if buckets % 4:
            problems.append(
                f"relative_attention_num_buckets: must be a multiple of 4, got {buckets}; "
                f"use {-(-buckets // 4) * 4}"
            )
        if furthest <= buckets // 2:
            problems.append(
                "relative_attention_max_distance: must be more than the buckets for single "
                f"distances, relative_attention_num_buckets / 2 = {buckets // 2}, got {furthest}"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def hidden_size(self) -> int:
        """Width of the residual streams."""
        return self.d_model

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward block between its projections."""
        return self.d_ff

    @property
    def num_hidden_layers(self) -> int:
        """Decoder layers: entries of the model's `layers`."""
        return self.num_decoder_layers

    @property
    def num_attention_heads(self) -> int:
        """Query heads per layer."""
        return self.num_heads

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads per layer: as many."""
        return self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_kv

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward blocks have gates."""
        return self.feed_forward_proj.startswith("gated-")

    def attention_spec(self, *, causal: bool) -> AttentionSpec:
        """Return what attention does: scores are not scaled, the initial values see to that.

        Args:
            causal: whether tokens see only those before them, as in the decoder.
        """
        return AttentionSpec(causal=causal, scale=1.0, dropout=self.dropout_rate)

    def layer_shapes(self, *, is_decoder: bool) -> Shapes:
        """Return the shape of every parameter of a layer, by its name within it.

        Args:
            is_decoder: whether the layer attends to the encoder's output.
        """
        hidden, inner, ff = self.d_model, self.num_heads * self.d_kv, self.d_ff
        shapes: Shapes = {}
        norms = {"self_attn": "input_layernorm", "cross_attn": "cross_attn_layernorm"}
        for attention in ("self_attn", "cross_attn") if is_decoder else ("self_attn",):
            shapes[f"{norms[attention]}.weight"] = (hidden,)
            for name in ("q_proj", "k_proj", "v_proj"):
                shapes[f"{attention}.{name}.weight"] = (inner, hidden)
            shapes[f"{attention}.o_proj.weight"] = (hidden, inner)
        shapes["post_attention_layernorm.weight"] = (hidden,)
        if self.is_gated:
            shapes["mlp.gate_proj.weight"] = (ff, hidden)
        shapes["mlp.up_proj.weight"] = (ff, hidden)
        shapes["mlp.down_proj.weight"] = (hidden, ff)
        return shapes

    def parameter_shapes(self) -> Shapes:
        """Return the global shape of every parameter by name, in the model's order.

        Matrices are `(out, in)`. A tied head has no entry: its matrix is `embed.weight`.
        """
        table = (self.relative_attention_num_buckets, self.num_heads)
        shapes: Shapes = {"embed.weight": (self.vocab_size, self.d_model)}
        for prefix, num_layers in (("encoder.", self.num_layers), ("", self.num_decoder_layers)):
            shapes[f"{prefix}relative_bias.table.weight"] = table
            layer = self.layer_shapes(is_decoder=not prefix)
            for index in range(num_layers):
                shapes |= {f"{prefix}layers.{index}.{name}": size for name, size in layer.items()}
            shapes[f"{prefix}norm.weight"] = (self.d_model,)
        if not self.tie_word_embeddings:
            shapes["head.weight"] = (self.vocab_size, self.d_model)
        return shapes

    def layout(self) -> Layout:
        """Return the layout table: patterns of parameter names to how they may be cut."""
        return layout(self)

    def forward_flops(self, source_len: int, target_len: int) -> int:
        """Return the operations of matrix products in a forward pass of one row.

        Args:
            source_len: tokens that the encoder takes.
            target_len: tokens that the decoder takes.
        """
        inner = self.num_heads * self.d_kv
        projection = 2 * self.d_model * inner
        feed_forward = (3 if self.is_gated else 2) * 2 * self.d_model * self.d_ff
        encoder = source_len * (4 * projection + feed_forward + 4 * source_len * inner)
        decoder = target_len * (6 * projection + feed_forward)
        decoder += target_len * 4 * (target_len + source_len) * inner
        decoder += source_len * 2 * projection  # keys and values of the memory
        head = target_len * 2 * self.vocab_size * self.d_model
        return self.num_layers * encoder + self.num_decoder_layers * decoder + head

    def forward_flops_per_token(self, seq_len: int) -> int:
        """Return the operations per token of the decoder, where the encoder takes as many.

        They are those of `forward_flops`, which also knows sequences of two lengths.

        Args:
            seq_len: tokens in each of the two sequences.
        """
        return self.forward_flops(seq_len, seq_len) // seq_len
