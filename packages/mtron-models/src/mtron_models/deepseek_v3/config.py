"""The configuration of the DeepSeek-V3 family. Imports no torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from mtron_models.attention_spec import AttentionSpec
from mtron_models.decoder_config import DecoderConfig, Shapes
from mtron_models.deepseek_v3.layout import layout
from mtron_models.layout import Layout
from mtron_models.moe_config import moe_flops, moe_shapes
from mtron_models.rope import yarn_mscale
from mtron_models.router_spec import RouterSpec


class DeepseekV3Config(DecoderConfig, frozen=True):
    """DeepSeek-V3 and R1, Moonlight: a decoder with latent attention and a mixture of experts."""

    honoured: ClassVar[dict[str, Any]] = {
        "attention_dropout": 0.0,
        "ep_size": 1,
        "hidden_act": "silu",
        "moe_layer_freq": 1,
        "scoring_func": "sigmoid",
        "seq_aux": True,
        "topk_method": "noaux_tc",
    }

    model_type: Literal["deepseek_v3"] = "deepseek_v3"
    """The family."""
    max_position_embeddings: int = Field(default=4096, ge=1)
    """Longest sequence, in tokens, that the model is meant for."""
    bos_token_id: int | None = Field(default=0, ge=0)
    """Token that begins a document, if any."""
    eos_token_id: int | None = Field(default=1, ge=0)
    """Token that ends a document, if any."""

    q_lora_rank: int | None = Field(default=1536, ge=1)
    """Width of the latent of queries; None: queries are made without one."""
    kv_lora_rank: int = Field(default=512, ge=1)
    """Width of the latent of keys and values, which a cache keeps."""
    qk_nope_head_dim: int = Field(default=128, ge=1)
    """Width of a query or key without its rotary part."""
    qk_rope_head_dim: int = Field(default=64, ge=2)
    """Width of the rotary part of a query or key, even; also called head_dim."""
    v_head_dim: int = Field(default=128, ge=1)
    """Width of a value."""
    rope_interleave: bool = True
    """Whether neighbouring elements form a pair in the rotation, instead of those of two halves."""
    attention_bias: bool = False
    """Whether the projections of attention from and to the residual stream have biases."""

    first_k_dense_replace: int = Field(default=3, ge=0)
    """How many layers, from the first on, have one feed-forward layer instead of experts."""
    moe_intermediate_size: int = Field(default=2048, ge=1)
    """Width of an expert between its projections."""
    n_routed_experts: int = Field(default=256, ge=1)
    """Experts that a token chooses among."""
    num_experts_per_tok: int = Field(default=8, ge=1)
    """Experts that a token chooses."""
    n_shared_experts: int = Field(default=1, ge=0)
    """Experts that every token goes to besides; together they are one of their added width."""
    n_group: int = Field(default=8, ge=1)
    """Groups into which neighbouring experts are divided."""
    topk_group: int = Field(default=4, ge=1)
    """Of how many groups a token may choose experts."""
    norm_topk_prob: bool = True
    """Whether the weights of a token's experts are divided by their sum."""
    routed_scaling_factor: float = Field(default=2.5, gt=0, allow_inf_nan=False)
    """Factor of these weights after that."""
    aux_loss_alpha: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Coefficient of the balancing loss over each sequence; DeepSeek-V3 trained with 0.0001."""
    router_bias_update_rate: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """By how much the correction bias of an expert moves after a step, against its load;
    DeepSeek-V3 trained with 0.001."""

    num_nextn_predict_layers: int = Field(default=0, ge=0)
    """Layers beyond the last that train the model to predict further tokens, one more each. A
    `config.json` without this key is of a model that has none."""

    @model_validator(mode="before")
    @classmethod
    def _name_head_dim(cls, values: Any) -> Any:
        """Let `head_dim` be the rotary width, as it is called for this family."""
        if not isinstance(values, Mapping) or "head_dim" in values:
            return values
        default = cls.model_fields["qk_rope_head_dim"].default
        return {**values, "head_dim": values.get("qk_rope_head_dim", default)}

    @classmethod
    def in_our_words(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `values` without the width of a query, which follows from that of its parts.

        Args:
            values: keys and values of a `config.json`, or of our own.

        Raises:
            ValueError: it does not follow.
        """
        if "qk_head_dim" not in values:
            return values
        rest = dict(values)
        given = rest.pop("qk_head_dim")
        parts = [
            rest.get(name, cls.model_fields[name].default)
            for name in ("qk_nope_head_dim", "qk_rope_head_dim")
        ]
        if given != sum(parts):
            raise ValueError(
                f"qk_head_dim: contradicts qk_nope_head_dim + qk_rope_head_dim = {sum(parts)}, "
                f"got {given!r}; leave it out"
            )
        return rest

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def shared_expert_size(self) -> int:
        """Width of the expert that every token goes to; 0 where there is none."""
        return self.n_shared_experts * self.moe_intermediate_size

    def is_dense(self, layer: int) -> bool:
        """Whether a layer has one feed-forward layer instead of experts.

        Args:
            layer: index of the layer; those beyond the last have experts.
        """
        return layer < min(self.first_k_dense_replace, self.num_hidden_layers)

    def problems(self) -> list[str]:
        """Return what does not fit together, a line each."""
        return super().problems() + self._expert_problems()

    def _head_problems(self) -> list[str]:
        heads, rope = self.num_attention_heads, self.qk_rope_head_dim
        problems = []
        if self.num_key_value_heads != heads:
            problems.append(
                f"num_key_value_heads: latent attention makes keys and values for each of "
                f"num_attention_heads = {heads} heads, got {self.num_key_value_heads}; leave it out"
            )
        if rope % 2:
            problems.append(
                f"qk_rope_head_dim: must be even for rotary positions, got {rope}; use {rope + 1}"
            )
        if self.head_dim != rope:
            problems.append(
                f"head_dim: is another name of qk_rope_head_dim = {rope} for this family, "
                f"got {self.head_dim}; leave it out"
            )
        return problems

    def _expert_problems(self) -> list[str]:
        experts, groups, chosen = self.n_routed_experts, self.n_group, self.num_experts_per_tok
        if experts % groups:
            divisors = ", ".join(str(n) for n in range(1, experts + 1) if experts % n == 0)
            return [
                f"n_group: does not divide n_routed_experts = {experts}, got {groups}; "
                f"use one of {divisors}"
            ]
        problems = []
        in_group = experts // groups
        if groups > 1 and in_group == 1:
            problems.append(
                f"n_group: a group is judged by its best two experts, but has only one of "
                f"n_routed_experts = {experts}, got {groups}; use at most {experts // 2}"
            )
        if self.topk_group > groups:
            problems.append(
                f"topk_group: is more than n_group = {groups}, got {self.topk_group}; use fewer"
            )
        elif chosen > self.topk_group * in_group:
            problems.append(
                f"num_experts_per_tok: is more than the {self.topk_group * in_group} experts of "
                f"topk_group = {self.topk_group} groups, got {chosen}; use fewer"
            )
        return problems

    def attention_spec(self, layer: int) -> AttentionSpec:
        """Return what attention does in a layer.

        Where YaRN lengthens sequences, scores are sharpened: queries and keys each count
        `yarn_mscale(factor, mscale_all_dim)` times.

        Args:
            layer: index of the layer; all are alike.
        """
        del layer
        scale = self.qk_head_dim**-0.5
        scaling = self.rope_scaling
        if scaling is not None and scaling.mscale_all_dim:
            scale *= yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2
        return AttentionSpec(scale=scale)

    def router_spec(self) -> RouterSpec:
        """Return how tokens choose experts: by sigmoid scores, in the best groups only."""
        return RouterSpec(
            num_experts=self.n_routed_experts,
            experts_per_token=self.num_experts_per_tok,
            scoring="sigmoid",
            normalize=self.norm_topk_prob,
            scale=self.routed_scaling_factor,
            num_groups=self.n_group,
            groups_per_token=self.topk_group,
            best_per_group=2,
            has_bias=True,
            bias_update_rate=self.router_bias_update_rate,
            sequence_loss=self.aux_loss_alpha,
        )

    def layer_shapes(self, layer: int) -> Shapes:
        """Return the shape of every parameter of a layer, by its name within it.

        Args:
            layer: index of the layer; those beyond the last predict further tokens.
        """
        hidden = self.hidden_size
        shapes: Shapes = {"input_layernorm.weight": (hidden,)}
        shapes |= self._attention_shapes()
        shapes["post_attention_layernorm.weight"] = (hidden,)
        if self.is_dense(layer):
            wide = (self.intermediate_size, hidden)
            shapes["mlp.gate_proj.weight"] = shapes["mlp.up_proj.weight"] = wide
            shapes["mlp.down_proj.weight"] = (hidden, self.intermediate_size)
            return shapes
        width, shared = self.moe_intermediate_size, self.shared_expert_size
        return shapes | moe_shapes(hidden, width, self.router_spec(), shared)

    def _attention_shapes(self) -> Shapes:
        hidden, heads, rank = self.hidden_size, self.num_attention_heads, self.q_lora_rank
        queries = heads * self.qk_head_dim
        shared = self.kv_lora_rank + self.qk_rope_head_dim
        of_heads = heads * (self.qk_nope_head_dim + self.v_head_dim)
        shapes: Shapes = {}
        if rank is None:
            shapes["q_proj.weight"] = (queries, hidden)
        else:
            shapes |= _linear("q_a_proj", rank, hidden, self.attention_bias)
            shapes["q_a_layernorm.weight"] = (rank,)
            shapes["q_b_proj.weight"] = (queries, rank)
        shapes |= _linear("kv_a_proj_with_mqa", shared, hidden, self.attention_bias)
        shapes["kv_a_layernorm.weight"] = (self.kv_lora_rank,)
        shapes["kv_b_proj.weight"] = (of_heads, self.kv_lora_rank)
        shapes |= _linear("o_proj", hidden, heads * self.v_head_dim, self.attention_bias)
        return {f"self_attn.{name}": shape for name, shape in shapes.items()}

    def parameter_shapes(self) -> Shapes:
        """Return the global shape of every parameter by name, in the model's order.

        Matrices are `(out, in)`. A tied head has no entry: its matrix is `embed.weight`; the
        layers that predict further tokens use the same embedding and head.
        """
        shapes = super().parameter_shapes()
        hidden = self.hidden_size
        for index in range(self.num_nextn_predict_layers):
            block = self.layer_shapes(self.num_hidden_layers + index)
            layer: Shapes = {
                "enorm.weight": (hidden,),
                "hnorm.weight": (hidden,),
                "eh_proj.weight": (hidden, 2 * hidden),
                **{f"block.{name}": shape for name, shape in block.items()},
                "norm.weight": (hidden,),
            }
            shapes |= {f"mtp.layers.{index}.{name}": shape for name, shape in layer.items()}
        return shapes

    def layout(self) -> Layout:
        """Return the layout table: patterns of parameter names to how they may be cut."""
        return layout(self)

    def forward_flops_per_token(self, seq_len: int) -> int:
        """Return the operations of every layer's products, of attention and of the head.

        A matrix that each token meets counts 2 per element, of the experts those that a token
        chooses. Attention counts `2 * seq_len * heads * (qk_head_dim + v_head_dim)`, over the
        whole sequence, although a causal core may skip half of it. The layers that predict
        further tokens count with their use of the head: training runs them, generation does not.

        Args:
            seq_len: tokens in the sequence.
        """
        head = 2 * self.vocab_size * self.hidden_size
        further = self.num_nextn_predict_layers
        join = 2 * 2 * self.hidden_size**2
        layers = sum(
            self._layer_flops(layer, seq_len) for layer in range(self.num_hidden_layers + further)
        )
        return layers + head + further * (join + head)

    def _layer_flops(self, layer: int, seq_len: int) -> int:
        width = self.qk_head_dim + self.v_head_dim
        attention = 2 * seq_len * self.num_attention_heads * width
        matrices = [shape for shape in self._attention_shapes().values() if len(shape) == 2]
        attention += sum(2 * rows * columns for rows, columns in matrices)
        if self.is_dense(layer):
            return attention + 2 * 3 * self.hidden_size * self.intermediate_size
        experts = moe_flops(
            self.hidden_size,
            self.moe_intermediate_size,
            self.router_spec(),
            self.shared_expert_size,
        )
        return attention + experts


def _linear(name: str, size: int, width: int, bias: bool) -> Shapes:
    """Return the shapes of a projection from `width` to `size` elements."""
    shapes: Shapes = {f"{name}.weight": (size, width)}
    return shapes | {f"{name}.bias": (size,)} if bias else shapes
