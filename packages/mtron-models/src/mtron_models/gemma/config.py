"""The configurations of the Gemma family: Gemma 2 and the text of Gemma 3. Imports no torch."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from mtron_models.attention_spec import AttentionSpec
from mtron_models.decoder_config import DecoderConfig, Shapes
from mtron_models.gemma.layout import layout
from mtron_models.layout import Layout
from mtron_models.windows import FULL, SLIDING, layer_types_problems

_IMAGE_TABLES = ("text_config", "vision_config")


class GemmaConfig(DecoderConfig, frozen=True):
    """What Gemma 2 and 3 share: norms around each branch, GeGLU, windows in most layers."""

    honoured: ClassVar[dict[str, Any]] = {
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "attention_dropout": 0.0,
        "use_bidirectional_attention": False,
    }

    num_key_value_heads: int = Field(default=4, ge=1)
    """Key and value heads per layer, each shared by a group of query heads."""
    head_dim: int = Field(default=256, ge=2)
    """Width of one head; even."""
    query_pre_attn_scalar: int = Field(default=256, ge=1)
    """The products of queries and keys are divided by its square root."""
    attention_bias: bool = False
    """Whether the four projections of attention have biases."""
    sliding_window: int | None = Field(default=4096, ge=1)
    """How many tokens one attends to in layers with a window, itself included."""
    layer_types: tuple[str, ...] | None = None
    """"full_attention" or "sliding_attention" for every layer; None: windows in all layers but
    every so many, as the family has it."""
    final_logit_softcapping: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Logits `x` become `cap * tanh(x / cap)`; None for no bound."""
    tie_word_embeddings: bool = True
    """Whether the output head uses the embedding matrix."""
    bos_token_id: int | None = Field(default=2, ge=0)
    """Token that begins a document, if any."""
    eos_token_id: int | None = Field(default=1, ge=0)
    """Token that ends a document, if any."""
    pad_token_id: int | None = Field(default=0, ge=0)
    """Token that fills batches, if any."""

    @classmethod
    def in_our_words(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `values` without the key that says nothing where it is None.

        Args:
            values: keys and values of a `config.json`, or of our own.
        """
        unsaid = "use_bidirectional_attention"
        return {k: v for k, v in values.items() if k != unsaid or v is not None}

    @property
    @abstractmethod
    def full_attention_every(self) -> int:
        """The last of every so many layers sees all tokens, where `layer_types` does not say."""

    @property
    def score_softcap(self) -> float | None:
        """The bound of the products of queries and keys, if there is one."""
        return None

    @property
    def has_head_norms(self) -> bool:
        """Whether query and key heads are normalized."""
        return False

    @property
    def local_rope_theta(self) -> float | None:
        """Base of the rotary frequencies in layers with a window; None where it is that of all."""
        return None

    def problems(self) -> list[str]:
        """Return what does not fit together, a line each."""
        problems = super().problems()
        problems += layer_types_problems(self.layer_types, self.num_hidden_layers)
        if not problems and self.sliding_window is None:
            first = next((i for i in range(self.num_hidden_layers) if self.has_window(i)), None)
            if first is not None:
                problems.append(
                    f"sliding_window: needed in layer {first}, which has a window, got None; "
                    "give the number of tokens"
                )
        return problems

    def has_window(self, layer: int) -> bool:
        """Whether the tokens of a layer see a window only.

        Args:
            layer: index of the layer.
        """
        if self.layer_types is not None:
            return self.layer_types[layer] == SLIDING
        return (layer + 1) % self.full_attention_every != 0

    def attention_spec(self, layer: int) -> AttentionSpec:
        """Return what attention does in a layer.

        Args:
            layer: index of the layer.
        """
        return AttentionSpec(
            window=self.sliding_window if self.has_window(layer) else None,
            scale=self.query_pre_attn_scalar**-0.5,
            softcap=self.score_softcap,
        )

    def layer_shapes(self, layer: int) -> Shapes:
        """Return the shape of every parameter of a layer, by its name within it.

        Args:
            layer: index of the layer; all are alike.
        """
        del layer
        hidden, intermediate, bias = self.hidden_size, self.intermediate_size, self.attention_bias
        shapes: Shapes = {"input_layernorm.weight": (hidden,)}
        shapes |= self.projection_shapes(bias=bias, output_bias=bias)
        if self.has_head_norms:
            shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (self.head_dim,)
        return shapes | {
            "post_attention_layernorm.weight": (hidden,),
            "pre_feedforward_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (intermediate, hidden),
            "mlp.up_proj.weight": (intermediate, hidden),
            "mlp.down_proj.weight": (hidden, intermediate),
            "post_feedforward_layernorm.weight": (hidden,),
        }

    def layout(self) -> Layout:
        """Return the layout table: patterns of parameter names to how they may be cut."""
        return layout(self)


class Gemma2Config(GemmaConfig, frozen=True):
    """Gemma 2: bounded scores and logits, a window in every other layer (arXiv:2408.00118)."""

    model_type: Literal["gemma2"] = "gemma2"
    """The family."""
    max_position_embeddings: int = Field(default=8192, ge=1)
    """Longest sequence, in tokens, that the model is meant for."""
    attn_logit_softcapping: float | None = Field(default=50.0, gt=0, allow_inf_nan=False)
    """Products `s` of queries and keys become `cap * tanh(s / cap)`; None for no bound."""
    final_logit_softcapping: float | None = Field(default=30.0, gt=0, allow_inf_nan=False)
    """Logits `x` become `cap * tanh(x / cap)`; None for no bound."""

    @property
    def full_attention_every(self) -> int:
        """The last of every so many layers sees all tokens, where `layer_types` does not say."""
        return 2

    @property
    def score_softcap(self) -> float | None:
        """The bound of the products of queries and keys, if there is one."""
        return self.attn_logit_softcapping


class Gemma3TextConfig(GemmaConfig, frozen=True):
    """The text of Gemma 3: normalized heads, two rotary bases, five windows to a full layer.

    Reference: arXiv:2503.19786.
    """

    # Hugging Face's code has a field attn_logit_softcapping here too, and never reads it.
    honoured: ClassVar[dict[str, Any]] = GemmaConfig.honoured | {"attn_logit_softcapping": None}

    model_type: Literal["gemma3_text"] = "gemma3_text"
    """The family. A configuration of the family "gemma3" is taken where it is of text alone."""
    max_position_embeddings: int = Field(default=131072, ge=1)
    """Longest sequence, in tokens, that the model is meant for."""
    rope_theta: float = Field(default=1e6, gt=0, allow_inf_nan=False)
    """Base of the rotary frequencies in layers that see all tokens."""
    rope_local_base_freq: float = Field(default=10000.0, gt=0, allow_inf_nan=False)
    """Base of the rotary frequencies in layers with a window, which are never scaled."""
    sliding_window_pattern: int = Field(default=6, ge=1)
    """The last of every so many layers sees all tokens, where `layer_types` does not say."""

    @classmethod
    def in_our_words(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `values` of text, with one field for the rotary base of each kind of layer.

        Args:
            values: keys and values of a `config.json`, or of our own.

        Raises:
            ValueError: the model is not of text alone, or its rotary positions are of another kind.
        """
        known = dict(super().in_our_words(values))
        known.pop("_sliding_window_pattern", None)  # a trace of how layer_types came about
        if known.get("model_type") == "gemma3":
            for name in _IMAGE_TABLES:
                if known.pop(name, None) is not None:
                    raise ValueError(
                        f"{name}: a model of images and text cannot be built, got a table; give "
                        "what its text_config holds, with model_type = 'gemma3_text'"
                    )
            known["model_type"] = "gemma3_text"
        nested = known.pop("rope_parameters", None)
        return known if nested is None else known | _rope_fields(nested, known)

    @property
    def full_attention_every(self) -> int:
        """The last of every so many layers sees all tokens, where `layer_types` does not say."""
        return self.sliding_window_pattern

    @property
    def has_head_norms(self) -> bool:
        """Whether query and key heads are normalized."""
        return True

    @property
    def local_rope_theta(self) -> float | None:
        """Base of the rotary frequencies in layers with a window; None where it is that of all."""
        return self.rope_local_base_freq


def _rope_fields(nested: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that say what a `rope_parameters` with a table per kind of layer says."""
    path = "rope_parameters"
    if not isinstance(nested, Mapping) or not nested.keys() <= {FULL, SLIDING}:
        raise ValueError(
            f"{path}: must have a table for each of {FULL!r} and {SLIDING!r}, got {nested!r}"
        )
    local = dict(nested.get(SLIDING) or {})
    theta = local.pop("rope_theta", None)
    if local not in ({}, {"rope_type": "default"}):
        raise ValueError(
            f"{path}.{SLIDING}: only rope_type 'default' with a rope_theta can be honoured, "
            f"got {nested[SLIDING]!r}"
        )
    fields: dict[str, Any] = {path: nested.get(FULL)}
    if theta is not None:
        if values.get("rope_local_base_freq", theta) != theta:
            raise ValueError(
                f"rope_local_base_freq: contradicts {path}.{SLIDING}.rope_theta, got "
                f"{values['rope_local_base_freq']!r} and {theta!r}; leave out one of them"
            )
        fields["rope_local_base_freq"] = theta
    return fields
