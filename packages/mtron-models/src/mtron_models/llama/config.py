"""The configurations of the Llama family: Llama, Mistral, Qwen 2 and 3. Imports no torch."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from mtron_models.attention_spec import AttentionSpec
from mtron_models.decoder_config import DecoderConfig, Shapes
from mtron_models.layout import Layout
from mtron_models.llama.layout import layout
from mtron_models.windows import SLIDING, layer_types_problems, window_layers


def _usual_window(values: dict[str, Any]) -> int | None:
    return 4096 if values["use_sliding_window"] else None


class PlainDecoderConfig(DecoderConfig, frozen=True):
    """A plain decoder: pre-norm RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    honoured: ClassVar[dict[str, Any]] = {"hidden_act": "silu", "attention_dropout": 0.0}

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections of queries, keys and values have biases."""
        return False

    @property
    def output_bias(self) -> bool:
        """Whether the output projection of attention has a bias."""
        return False

    @property
    def feed_forward_bias(self) -> bool:
        """Whether the projections of the feed-forward layers have biases."""
        return False

    @property
    def has_head_norms(self) -> bool:
        """Whether query and key heads are normalized."""
        return False

    def layer_shapes(self, layer: int) -> Shapes:
        """Return the shape of every parameter of a layer, by its name within it.

        Args:
            layer: index of the layer; all are alike.
        """
        del layer
        hidden, intermediate = self.hidden_size, self.intermediate_size
        shapes: Shapes = {"input_layernorm.weight": (hidden,)}
        shapes |= self.projection_shapes(bias=self.qkv_bias, output_bias=self.output_bias)
        if self.has_head_norms:
            shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (self.head_dim,)
        shapes["post_attention_layernorm.weight"] = (hidden,)
        for name, size, width in (
            ("gate_proj", intermediate, hidden),
            ("up_proj", intermediate, hidden),
            ("down_proj", hidden, intermediate),
        ):
            shapes[f"mlp.{name}.weight"] = (size, width)
            if self.feed_forward_bias:
                shapes[f"mlp.{name}.bias"] = (size,)
        return shapes

    def layout(self) -> Layout:
        """Return the layout table: patterns of parameter names to how they may be cut."""
        return layout(self)


class LlamaConfig(PlainDecoderConfig, frozen=True):
    """Llama 2 and 3."""

    model_type: Literal["llama"] = "llama"
    """The family."""
    attention_bias: bool = False
    """Whether the four projections of attention have biases."""
    mlp_bias: bool = False
    """Whether the projections of the feed-forward layers have biases."""

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections of queries, keys and values have biases."""
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        """Whether the output projection of attention has a bias."""
        return self.attention_bias

    @property
    def feed_forward_bias(self) -> bool:
        """Whether the projections of the feed-forward layers have biases."""
        return self.mlp_bias


class MistralConfig(PlainDecoderConfig, frozen=True):
    """Mistral 7B and its like: a Llama whose tokens see a window (arXiv:2310.06825)."""

    model_type: Literal["mistral"] = "mistral"
    """The family."""
    num_key_value_heads: int = Field(default=8, ge=1)
    """Key and value heads per layer, each shared by a group of query heads."""
    max_position_embeddings: int = Field(default=131072, ge=1)
    """Longest sequence, in tokens, that the model is meant for."""
    sliding_window: int | None = Field(default=4096, ge=1)
    """How many tokens one attends to, itself included; None for all before it."""

    def attention_spec(self, layer: int) -> AttentionSpec:
        """Return what attention does in a layer.

        Args:
            layer: index of the layer; all are alike.
        """
        del layer
        return AttentionSpec(window=self.sliding_window)


class WindowedConfig(PlainDecoderConfig, frozen=True):
    """A decoder in which some layers may see a window: what Qwen 2 and 3 share."""

    num_key_value_heads: int = Field(default=32, ge=1)
    """Key and value heads per layer, each shared by a group of query heads."""
    max_position_embeddings: int = Field(default=32768, ge=1)
    """Longest sequence, in tokens, that the model is meant for."""
    use_sliding_window: bool = False
    """Whether some layers see a window only."""
    sliding_window: int | None = Field(default_factory=_usual_window, ge=1)
    """How many tokens one attends to in these layers, itself included. Default: 4096 where
    use_sliding_window is true."""
    max_window_layers: int = Field(default=28, ge=0)
    """Layers from this index on see the window, where `layer_types` does not say."""
    layer_types: tuple[str, ...] | None = None
    """"full_attention" or "sliding_attention" for every layer; None: by max_window_layers."""

    def problems(self) -> list[str]:
        """Return what does not fit together, a line each."""
        return super().problems() + layer_types_problems(self.layer_types, self.num_hidden_layers)

    def attention_spec(self, layer: int) -> AttentionSpec:
        """Return what attention does in a layer.

        Args:
            layer: index of the layer.
        """
        if not self.use_sliding_window or self.sliding_window is None:
            return AttentionSpec()
        types = self.layer_types or window_layers(self.num_hidden_layers, self.max_window_layers)
        return AttentionSpec(window=self.sliding_window if types[layer] == SLIDING else None)


class Qwen2Config(WindowedConfig, frozen=True):
    """Qwen 2 and 2.5: a Llama with biases for queries, keys and values (arXiv:2407.10671)."""

    model_type: Literal["qwen2"] = "qwen2"
    """The family."""

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections of queries, keys and values have biases."""
        return True


class Qwen3Config(WindowedConfig, frozen=True):
    """Qwen 3: a Llama that normalizes query and key heads (arXiv:2505.09388)."""

    model_type: Literal["qwen3"] = "qwen3"
    """The family."""
    head_dim: int = Field(default=128, ge=2)
    """Width of one head; even."""
    attention_bias: bool = False
    """Whether the four projections of attention have biases."""

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections of queries, keys and values have biases."""
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        """Whether the output projection of attention has a bias."""
        return self.attention_bias

    @property
    def has_head_norms(self) -> bool:
        """Whether query and key heads are normalized."""
        return True
