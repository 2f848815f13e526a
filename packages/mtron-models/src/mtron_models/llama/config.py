"""The configuration of the Llama family. Imports no torch."""

from typing import Any, Literal

from pydantic import Field, model_validator

from mtron_models.config import ModelConfig
from mtron_models.layout import Layout
from mtron_models.llama.layout import layout

_Config = dict[str, Any]


def _same_as_query_heads(values: _Config) -> int:
    return values["num_attention_heads"]


def _hidden_per_head(values: _Config) -> int:
    return values["hidden_size"] // values["num_attention_heads"]


class LlamaConfig(ModelConfig, frozen=True):
    """A plain decoder: pre-norm RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    model_type: Literal["llama"] = "llama"
    """The family."""
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
    rms_norm_eps: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    """Added to the mean square in every RMSNorm."""
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
    def _check(self) -> "LlamaConfig":
        problems = [*self._head_problems(), *self._token_problems()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

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
        elif self.hidden_size % (2 * heads):
            fits = -(-self.hidden_size // (2 * heads)) * 2 * heads
            problems.append(
                f"hidden_size: does not give each of num_attention_heads = {heads} heads an even "
                f"width, got {self.hidden_size}; use {fits} or give head_dim"
            )
        return problems

    def _token_problems(self) -> list[str]:
        return [
            f"{name}: is not a token of the vocabulary, got {token}; "
            f"use at most vocab_size - 1 = {self.vocab_size - 1}"
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
            if (token := getattr(self, name)) is not None and token >= self.vocab_size
        ]

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the global shape of every parameter by name, in the model's order.

        Matrices are `(out, in)`. A tied head has no entry: its matrix is `embed.weight`.
        """
        hidden, intermediate = self.hidden_size, self.intermediate_size
        query, kv = (
            n * self.head_dim for n in (self.num_attention_heads, self.num_key_value_heads)
        )
        layer = {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (query, hidden),
            "self_attn.k_proj.weight": (kv, hidden),
            "self_attn.v_proj.weight": (kv, hidden),
            "self_attn.o_proj.weight": (hidden, query),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (intermediate, hidden),
            "mlp.up_proj.weight": (intermediate, hidden),
            "mlp.down_proj.weight": (hidden, intermediate),
        }
        shapes: dict[str, tuple[int, ...]] = {"embed.weight": (self.vocab_size, hidden)}
        for index in range(self.num_hidden_layers):
            shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
        shapes["norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["head.weight"] = (self.vocab_size, hidden)
        return shapes

    def layout(self) -> Layout:
        """Return the layout table: patterns of parameter names to how they may be cut."""
        return layout(self)

    def forward_flops_per_token(self, seq_len: int) -> int:
        """Return `2 * matrix elements + layers * 4 * seq_len * heads * head_dim`.

        The matrices are the seven projections of every layer and the head, also when it is tied;
        the embedding is a lookup and costs nothing. Attention is counted over the whole sequence
        (scores and weighted sum, 2 operations each per element), although a causal core may skip
        the half that is masked.

        Args:
            seq_len: tokens in the sequence.
        """
        matrices = sum(
            shape[0] * shape[1]
            for name, shape in self.parameter_shapes().items()
            if name.startswith("layers.") and len(shape) == 2
        )
        head = self.vocab_size * self.hidden_size
        attention = 4 * seq_len * self.num_attention_heads * self.head_dim
        return 2 * (matrices + head) + self.num_hidden_layers * attention
