"""The configuration of GPT-2. Imports no torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from mtron_models.attention_spec import AttentionSpec
from mtron_models.config import ModelConfig
from mtron_models.decoder_config import Shapes, token_problems
from mtron_models.gpt2.layout import layout
from mtron_models.layout import Layout

_WITHOUT_EFFECT = frozenset(
    {
        "n_ctx",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    }
)
"""Keys of Hugging Face's configuration that are of other heads than the language model's, and an
old name of n_positions that nothing reads."""

_END_OF_TEXT = 50256
"""The token between documents in the vocabulary of the published models, its last one."""


def _end_of_text(values: dict[str, Any]) -> int | None:
    return _END_OF_TEXT if values["vocab_size"] > _END_OF_TEXT else None


class GPT2Config(ModelConfig, frozen=True):
    """GPT-2 (Radford et al., 2019); the defaults are those of its smallest model.

    Fields have the names that Hugging Face's configuration has. The names that other families
    share (`hidden_size`, `num_attention_heads` and so on) are properties.
    """

    honoured: ClassVar[dict[str, Any]] = {"add_cross_attention": False}

    model_type: Literal["gpt2"] = "gpt2"
    """The family."""
    vocab_size: int = Field(default=50257, ge=1)
    """Rows of the embedding: how many different tokens there are."""
    n_positions: int = Field(default=1024, ge=1)
    """Rows of the learned positions: the longest sequence, in tokens."""
    n_embd: int = Field(default=768, ge=1)
    """Width of the residual stream."""
    n_layer: int = Field(default=12, ge=1)
    """Decoder layers."""
    n_head: int = Field(default=12, ge=1)
    """Attention heads per layer; divides n_embd."""
    n_inner: int | None = Field(default=None, ge=1)
    """Width of the feed-forward block between its projections; None for 4 * n_embd."""
    activation_function: Literal["gelu_new", "gelu_pytorch_tanh", "gelu"] = "gelu_new"
    """Between the projections of the feed-forward block: GELU by tanh (the first two are the
    same), or the exact one."""
    resid_pdrop: float = Field(default=0.1, ge=0, lt=1)
    """Probability of zeroing an element of each residual branch while training."""
    embd_pdrop: float = Field(default=0.1, ge=0, lt=1)
    """Probability of zeroing an element of the embedding's output while training."""
    attn_pdrop: float = Field(default=0.1, ge=0, lt=1)
    """Probability of zeroing an attention weight while training. Only the reference core can do
    that; the published models used 0.1."""
    layer_norm_epsilon: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    """Added to the variance in every LayerNorm."""
    initializer_range: float = Field(default=0.02, gt=0, allow_inf_nan=False)
    """Standard deviation of the initial matrices; the output projections of both residual
    branches are scaled down by sqrt(2 * n_layer)."""
    scale_attn_weights: bool = True
    """Whether the products of queries and keys are divided by sqrt(head_dim)."""
    scale_attn_by_inverse_layer_idx: bool = False
    """Whether they are divided by the number of the layer too, counted from 1."""
    reorder_and_upcast_attn: bool = False
    """Whether Hugging Face's code multiplies queries and keys in fp32. It changes rounding in 16
    bits only, and nothing here; kept for those who read the configuration there."""
    tie_word_embeddings: bool = True
    """Whether the output head uses the embedding matrix."""
    bos_token_id: int | None = Field(default_factory=_end_of_text, ge=0)
    """Token that begins a document, if any. Default: 50256, where the vocabulary has it."""
    eos_token_id: int | None = Field(default_factory=_end_of_text, ge=0)
    """Token that ends a document, if any. Default: 50256, where the vocabulary has it."""
    pad_token_id: int | None = Field(default=None, ge=0)
    """Token that fills batches, if any."""

    @classmethod
    def in_our_words(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `values` without the keys that change nothing about a language model.

        Args:
            values: keys and values of a `config.json`, or of our own.
        """
        return {name: value for name, value in values.items() if name not in _WITHOUT_EFFECT}

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.n_embd

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward block between its projections."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def num_hidden_layers(self) -> int:
        """Decoder layers."""
        return self.n_layer

    @property
    def num_attention_heads(self) -> int:
        """Query heads per layer."""
        return self.n_head

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads per layer: each query head has its own."""
        return self.n_head

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.n_embd // self.n_head

    @property
    def max_position_embeddings(self) -> int:
        """Longest sequence, in tokens; there are no positions beyond it."""
        return self.n_positions

    @model_validator(mode="after")
    def _check(self) -> "GPT2Config":
        problems = token_problems(self)
        if self.n_embd % self.n_head:
            fits = -(-self.n_embd // self.n_head) * self.n_head
            problems.append(
                f"n_embd: must be a multiple of n_head = {self.n_head}, got {self.n_embd}; "
                f"use {fits}"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def attention_spec(self, layer: int) -> AttentionSpec:
        """Return what attention does in a layer.

        Args:
            layer: index of the layer.
        """
        scale = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        if self.scale_attn_by_inverse_layer_idx:
            scale /= layer + 1
        return AttentionSpec(scale=scale, dropout=self.attn_pdrop)

    def layer_shapes(self, layer: int) -> Shapes:
        """Return the shape of every parameter of a layer, by its name within it.

        Args:
            layer: index of the layer; all are alike.
        """
        del layer
        hidden, intermediate = self.hidden_size, self.intermediate_size
        matrices = {
            "input_layernorm": (hidden,),
            **{f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"},
            "post_attention_layernorm": (hidden,),
            "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
        }
        shapes: Shapes = {}
        for name, shape in matrices.items():
            shapes[f"{name}.weight"] = shape
            shapes[f"{name}.bias"] = shape[:1]
        return shapes

    def parameter_shapes(self) -> Shapes:
        """Return the global shape of every parameter by name, in the model's order.

        Matrices are `(out, in)`. A tied head has no entry: its matrix is `embed.weight`.
        """
        shapes: Shapes = {
            "embed.weight": (self.vocab_size, self.hidden_size),
            "embed.positions.weight": (self.n_positions, self.hidden_size),
        }
        for index in range(self.num_hidden_layers):
            layer = self.layer_shapes(index)
            shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
        shapes["norm.weight"] = shapes["norm.bias"] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes["head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def forward_flops_per_token(self, seq_len: int) -> int:
        """Return `2 * matrix elements + layers * 4 * seq_len * hidden`.

        Counted as for other decoders: all projections and the head, also when it is tied, but not
        the lookups of tokens and positions; attention over the whole sequence.

        Args:
            seq_len: tokens in the sequence.
        """
        layer = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
        head = self.vocab_size * self.hidden_size
        attention = 4 * seq_len * self.hidden_size
        return 2 * (self.n_layer * layer + head) + self.n_layer * attention

    def layout(self) -> Layout:
        """Return the layout table: patterns of parameter names to how they may be cut."""
        return layout(self)
