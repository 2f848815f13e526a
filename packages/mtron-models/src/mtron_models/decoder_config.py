"""The configuration fields that decoder-only language models share. Imports no torch."""

from typing import Any

from pydantic import Field, model_validator

from mtron_models.attention_spec import AttentionSpec
from mtron_models.config import ModelConfig
from mtron_models.rope import RopeScaling

Shapes = dict[str, tuple[int, ...]]


def token_problems(config: ModelConfig) -> list[str]:
    """Return which of the special tokens of `config` its vocabulary lacks, a line each."""
    vocab_size: int = getattr(config, "vocab_size")  # noqa: B009
    return [
        f"{name}: is not a token of the vocabulary, got {token}; "
        f"use at most vocab_size - 1 = {vocab_size - 1}"
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        if (token := getattr(config, name, None)) is not None and token >= vocab_size
    ]


def _same_as_query_heads(values: dict[str, Any]) -> int:
    return values["num_attention_heads"]


def _hidden_per_head(values: dict[str, Any]) -> int:
    return values["hidden_size"] // values["num_attention_heads"]


class DecoderConfig(ModelConfig, frozen=True):
    """A decoder with rotary positions and several heads of attention."""

    vocab_size: int = Field(ge=1)
    """Rows of the embedding: how many different tokens there are."""
    hidden_size: int = Field(ge=1)
    """Width of the residual stream."""
    intermediate_size: int = Field(ge=1)
    """Width of the feed-forward block between its projections."""
    num_hidden_layers: int = Field(ge=1)
    """Decoder layers."""
    num_attention_heads: int = Field(ge=1)
    """Query heads per layer."""
    num_key_value_heads: int = Field(default_factory=_same_as_query_heads, ge=1)
    """Key and value heads per layer, each shared by a group of query heads. Default: as many
    as query heads."""
    head_dim: int = Field(default_factory=_hidden_per_head, ge=2)
    """Width of one head; even. Default: hidden_size / num_attention_heads."""
    max_position_embeddings: int = Field(default=2048, ge=1)
    """Longest sequence, in tokens, that the model is meant for."""
    rope_theta: float = Field(default=10000.0, gt=0, allow_inf_nan=False)
    """Base of the rotary frequencies; larger for longer sequences."""
    rope_scaling: RopeScaling | None = None
    """How the frequencies change for longer sequences, if they do."""
    rms_norm_eps: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    """Added to the mean square in every RMSNorm, but for those of latents."""
    tie_word_embeddings: bool = False
    """Whether the output head uses the embedding matrix."""
    hidden_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of zeroing an element of the embedding's output and of each residual branch
    while training."""
    initializer_range: float = Field(default=0.02, gt=0, allow_inf_nan=False)
    """Standard deviation of the initial matrices; the output projections of both residual
    branches are scaled down by sqrt(2 * num_hidden_layers)."""
    bos_token_id: int | None = Field(default=None, ge=0)
    """Token that begins a document, if any."""
    eos_token_id: int | None = Field(default=None, ge=0)
    """Token that ends a document, if any."""
    pad_token_id: int | None = Field(default=None, ge=0)
    """Token that fills batches, if any."""

    @model_validator(mode="after")
    def _check(self) -> "DecoderConfig":
        problems = self.problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def problems(self) -> list[str]:
        """Return what does not fit together, a line each; families add their own."""
        return [*self._head_problems(), *token_problems(self)]

    def _head_problems(self) -> list[str]:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        problems = []
        if heads % kv_heads:
            divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            problems.append(
                f"num_key_value_heads: does not divide num_attention_heads = {heads}, "
                f"got {kv_heads}; use one of {divisors}"
            )
        if "head_dim" in self.model_fields_set:
            if self.head_dim % 2:
                problems.append(
                    f"head_dim: must be even for rotary positions, got {self.head_dim}; "
                    f"use {self.head_dim + 1}"
                )
        elif self.head_dim == self.hidden_size // heads and self.hidden_size % (2 * heads):
            fits = -(-self.hidden_size // (2 * heads)) * 2 * heads
            problems.append(
                f"hidden_size: does not give each of num_attention_heads = {heads} heads an even "
                f"width, got {self.hidden_size}; use {fits} or give head_dim"
            )
        return problems

    def attention_spec(self, layer: int) -> AttentionSpec:
        """Return what attention does in a layer.

        Args:
            layer: index of the layer.
        """
        del layer
        return AttentionSpec()

    def layer_shapes(self, layer: int) -> Shapes:
        """Return the shape of every parameter of a layer, by its name within it.

        Args:
            layer: index of the layer.
        """
        raise NotImplementedError

    def projection_shapes(self, *, bias: bool = False, output_bias: bool = False) -> Shapes:
        """Return the shapes of the four projections of attention.

        Args:
            bias: whether those of queries, keys and values have biases.
            output_bias: whether that of the output has one.
        """
        hidden = self.hidden_size
        query, kv = (
            n * self.head_dim for n in (self.num_attention_heads, self.num_key_value_heads)
        )
        shapes: Shapes = {}
        for name, size in (("q", query), ("k", kv), ("v", kv)):
            shapes[f"self_attn.{name}_proj.weight"] = (size, hidden)
            if bias:
                shapes[f"self_attn.{name}_proj.bias"] = (size,)
        shapes["self_attn.o_proj.weight"] = (hidden, query)
        if output_bias:
            shapes["self_attn.o_proj.bias"] = (hidden,)
        return shapes

    def parameter_shapes(self) -> Shapes:
        """Return the global shape of every parameter by name, in the model's order.

        Matrices are `(out, in)`. A tied head has no entry: its matrix is `embed.weight`.
        """
        shapes: Shapes = {"embed.weight": (self.vocab_size, self.hidden_size)}
        for index in range(self.num_hidden_layers):
            layer = self.layer_shapes(index)
            shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
        shapes["norm.weight"] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes["head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def forward_flops_per_token(self, seq_len: int) -> int:
        """Return `2 * matrix elements + layers * 4 * seq_len * heads * head_dim`.

        The matrices are the projections of every layer and the head, also when it is tied; the
        embedding is a lookup and costs nothing. Attention is counted over the whole sequence
        (scores and weighted sum, 2 operations each per element), although a causal core may skip
        the half that is masked, and one with a window still more.

        Args:
            seq_len: tokens in the sequence.
        """
        matrices = sum(
            shape[0] * shape[1]
            for layer in range(self.num_hidden_layers)
            for shape in self.layer_shapes(layer).values()
            if len(shape) == 2
        )
        head = self.vocab_size * self.hidden_size
        attention = 4 * seq_len * self.num_attention_heads * self.head_dim
        return 2 * (matrices + head) + self.num_hidden_layers * attention
