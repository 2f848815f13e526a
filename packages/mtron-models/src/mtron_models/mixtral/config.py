"""The configurations of the Mixtral family: Mixtral and Qwen3-MoE. Imports no torch."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from mtron_models.attention_spec import AttentionSpec
from mtron_models.decoder_config import Shapes
from mtron_models.layout import Layout
from mtron_models.llama.config import PlainDecoderConfig
from mtron_models.mixtral.layout import layout
from mtron_models.moe_config import moe_shapes
from mtron_models.router_spec import Capacity, RouterSpec


class SparseDecoderConfig(PlainDecoderConfig, frozen=True):
    """A plain decoder in which mixtures of experts stand for some or all feed-forward layers.

    The balancing loss of a layer is `experts * sum over experts of (times chosen / tokens) *
    (mean probability)`, as in Hugging Face's models: `num_experts_per_tok` where all is even. It
    is taken over each row of the batch, averaged over rows and summed over layers.
    """

    router_aux_loss_coef: float = Field(default=0.001, ge=0, allow_inf_nan=False)
    """Coefficient of the balancing loss of every layer; 0 for none."""
    router_aux_loss_over: Literal["sequence", "batch"] = "sequence"
    """Whether experts are to be chosen evenly in each row, or over the global batch; then how
    often each was chosen is that of the previous step."""
    router_z_loss_coef: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Coefficient of the mean square of the logarithm of the router's normalizer (arXiv:2202.08906,
    equation 5); 0 for none."""
    expert_capacity_factor: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """How many times its even share of a row's tokens an expert takes; None for all that choose
    it."""
    expert_capacity_drop: Literal["weight", "position"] = "weight"
    """Which tokens a full expert turns away: those with the smallest weights, or the last ones."""
    pad_experts_to_capacity: bool = False
    """Whether every expert computes on as many rows as it could take, so that no size depends on
    the data."""

    @property
    @abstractmethod
    def experts_field(self) -> str:
        """The field that counts the experts of a layer."""

    @property
    @abstractmethod
    def expert_width_field(self) -> str:
        """The field for the width of an expert between its projections."""

    @property
    def normalizes_weights(self) -> bool:
        """Whether the weights of the experts that a token chooses sum to 1."""
        return True

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts.

        Args:
            layer: index of the layer.
        """
        del layer
        return True

    @property
    def expert_width(self) -> int:
        """Width of an expert between its projections."""
        return getattr(self, self.expert_width_field)

    def router_spec(self) -> RouterSpec:
        """Return how tokens choose their experts."""
        chosen: int = getattr(self, "num_experts_per_tok")  # noqa: B009
        is_global = self.router_aux_loss_over == "batch"
        coefficient = self.router_aux_loss_coef * chosen  # ours is 1, theirs `chosen`, when even
        capacity = None
        if self.expert_capacity_factor is not None:
            capacity = Capacity(
                self.expert_capacity_factor, self.expert_capacity_drop, self.pad_experts_to_capacity
            )
        return RouterSpec(
            num_experts=getattr(self, self.experts_field),
            experts_per_token=chosen,
            normalize=self.normalizes_weights,
            sequence_loss=0.0 if is_global else coefficient,
            batch_loss=coefficient if is_global else 0.0,
            z_loss=self.router_z_loss_coef,
            capacity=capacity,
        )

    def problems(self) -> list[str]:
        """Return what does not fit together, a line each."""
        chosen: int = getattr(self, "num_experts_per_tok")  # noqa: B009
        experts: int = getattr(self, self.experts_field)
        problems = super().problems()
        if chosen > experts:
            problems.append(
                f"num_experts_per_tok: must be at most {self.experts_field} = {experts}, "
                f"got {chosen}"
            )
        if self.pad_experts_to_capacity and self.expert_capacity_factor is None:
            problems.append(
                "pad_experts_to_capacity: needs expert_capacity_factor, got True; "
                "set the factor or leave it out"
            )
        return problems

    def layer_shapes(self, layer: int) -> Shapes:
        """Return the shape of every parameter of a layer, by its name within it.

        Args:
            layer: index of the layer.
        """
        shapes = super().layer_shapes(layer)
        if not self.is_sparse(layer):
            return shapes
        kept = {name: shape for name, shape in shapes.items() if not name.startswith("mlp.")}
        return kept | moe_shapes(self.hidden_size, self.expert_width, self.router_spec())

    def forward_flops_per_token(self, seq_len: int) -> int:
        """Return what a plain decoder computes, with the experts that a token chooses.

        Args:
            seq_len: tokens in the sequence.
        """
        sparse = sum(self.is_sparse(layer) for layer in range(self.num_hidden_layers))
        chosen = self.router_spec().experts_per_token
        experts = 6 * chosen * self.hidden_size * self.expert_width
        return super().forward_flops_per_token(seq_len) + sparse * experts

    def layout(self) -> Layout:
        """Return the layout table: patterns of parameter names to how they may be cut."""
        return layout(self)


class MixtralConfig(SparseDecoderConfig, frozen=True):
    """Mixtral: a Mistral with experts in every layer (arXiv:2401.04088)."""

    honoured: ClassVar[dict[str, Any]] = {
        **PlainDecoderConfig.honoured,
        "router_jitter_noise": 0.0,
    }

    model_type: Literal["mixtral"] = "mixtral"
    """The family."""
    num_key_value_heads: int = Field(default=8, ge=1)
    """Key and value heads per layer, each shared by a group of query heads."""
    max_position_embeddings: int = Field(default=131072, ge=1)
    """Longest sequence, in tokens, that the model is meant for."""
    rope_theta: float = Field(default=1e6, gt=0, allow_inf_nan=False)
    """Base of the rotary frequencies; larger for longer sequences."""
    rms_norm_eps: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    """Added to the mean square in every RMSNorm."""
    sliding_window: int | None = Field(default=None, ge=1)
    """How many tokens one attends to, itself included; None for all before it."""
    num_local_experts: int = Field(default=8, ge=1)
    """Experts per layer."""
    num_experts_per_tok: int = Field(default=2, ge=1)
    """How many of them each token chooses."""

    @property
    def experts_field(self) -> str:
        """The field that counts the experts of a layer."""
        return "num_local_experts"

    @property
    def expert_width_field(self) -> str:
        """The field for the width of an expert between its projections."""
        return "intermediate_size"

    def attention_spec(self, layer: int) -> AttentionSpec:
        """Return what attention does in a layer.

        Args:
            layer: index of the layer; all are alike.
        """
        del layer
        return AttentionSpec(window=self.sliding_window)


class Qwen3MoeConfig(SparseDecoderConfig, frozen=True):
    """Qwen3-MoE: a Qwen 3 with many small experts in some or all layers (arXiv:2505.09388)."""

    model_type: Literal["qwen3_moe"] = "qwen3_moe"
    """The family."""
    num_key_value_heads: int = Field(default=4, ge=1)
    """Key and value heads per layer, each shared by a group of query heads."""
    max_position_embeddings: int = Field(default=32768, ge=1)
    """Longest sequence, in tokens, that the model is meant for."""
    attention_bias: bool = False
    """Whether the four projections of attention have biases."""
    use_sliding_window: bool = False
    """Whether tokens see a window only."""
    sliding_window: int | None = Field(default=4096, ge=1)
    """How many tokens one attends to then, itself included."""
    num_experts: int = Field(default=128, ge=1)
    """Experts per layer that has them."""
    num_experts_per_tok: int = Field(default=8, ge=1)
    """How many of them each token chooses."""
    moe_intermediate_size: int = Field(default=768, ge=1)
    """Width of an expert between its projections; `intermediate_size` is that of layers without
    experts."""
    norm_topk_prob: bool = False
    """Whether the weights of the experts that a token chooses are divided by their sum."""
    decoder_sparse_step: int = Field(default=1, ge=1)
    """The last of every so many layers has experts."""
    mlp_only_layers: tuple[int, ...] = ()
    """Layers without experts besides, by index."""

    @classmethod
    def in_our_words(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `values` with the experts' count under one name, without a key of no effect.

        Args:
            values: keys and values of a `config.json`, or of our own.

        Raises:
            ValueError: two counts of experts contradict each other.
        """
        # Published files have max_window_layers, which this family does not look at.
        kept = {name: value for name, value in values.items() if name != "max_window_layers"}
        count = kept.pop("num_local_experts", None)
        if count is not None and kept.setdefault("num_experts", count) != count:
            raise ValueError(
                f"num_local_experts: contradicts num_experts = {kept['num_experts']}, got {count}; "
                "leave it out"
            )
        return kept

    @property
    def experts_field(self) -> str:
        """The field that counts the experts of a layer."""
        return "num_experts"

    @property
    def expert_width_field(self) -> str:
        """The field for the width of an expert between its projections."""
        return "moe_intermediate_size"

    @property
    def normalizes_weights(self) -> bool:
        """Whether the weights of the experts that a token chooses sum to 1."""
        return self.norm_topk_prob

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

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts.

        Args:
            layer: index of the layer.
        """
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0

    def attention_spec(self, layer: int) -> AttentionSpec:
        """Return what attention does in a layer.

        Args:
            layer: index of the layer; all are alike.
        """
        del layer
        return AttentionSpec(window=self.sliding_window if self.use_sliding_window else None)

    def problems(self) -> list[str]:
        """Return what does not fit together, a line each."""
        outside = [n for n in self.mlp_only_layers if not 0 <= n < self.num_hidden_layers]
        problems = super().problems()
        if outside:
            problems.append(
                f"mlp_only_layers: must be layers from 0 to {self.num_hidden_layers - 1}, "
                f"got {', '.join(map(str, outside))}"
            )
        return problems
