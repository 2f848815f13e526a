"""The Gemma decoder: tokens in, logits out. Gemma 2, and the text of Gemma 3.

Reference: Gemma Team, arXiv:2408.00118, section 2, and arXiv:2503.19786, section 2. With equal
weights the logits are those of Hugging Face's `Gemma2ForCausalLM` and `Gemma3ForCausalLM`.

Shape suffixes: B batch, S sequence, D hidden.
"""

from functools import partial

from torch import Tensor, nn

from mtron_models import ops
from mtron_models.causal_lm import NO_CONTEXT, CausalLM
from mtron_models.context import Context
from mtron_models.gemma.config import GemmaConfig
from mtron_models.init import Constant, Normal, Rule
from mtron_models.layers.attention import Attention
from mtron_models.layers.dropout import Dropout
from mtron_models.layers.loss import HeadLoss
from mtron_models.layers.mlp import GatedMLP
from mtron_models.layers.norm import UnitOffsetRMSNorm
from mtron_models.layers.rotary import RotaryTable


class GemmaLayer(nn.Module):
    """Attention, then a feed-forward layer, each normalized before it joins the residual stream."""

    def __init__(self, config: GemmaConfig, index: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.has_window = config.has_window(index)
        self.input_layernorm = UnitOffsetRMSNorm(hidden, eps)
        self.self_attn = Attention(
            hidden,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            spec=config.attention_spec(index),
            bias=config.attention_bias,
            output_bias=config.attention_bias,
            head_norm=partial(UnitOffsetRMSNorm, eps=eps) if config.has_head_norms else None,
        )
        self.post_attention_layernorm = UnitOffsetRMSNorm(hidden, eps)
        self.self_attn_dropout = Dropout(config.hidden_dropout, f"layers.{index}.self_attn")
        self.pre_feedforward_layernorm = UnitOffsetRMSNorm(hidden, eps)
        self.mlp = GatedMLP(hidden, config.intermediate_size, op=ops.geglu)
        self.post_feedforward_layernorm = UnitOffsetRMSNorm(hidden, eps)
        self.mlp_dropout = Dropout(config.hidden_dropout, f"layers.{index}.mlp")

    def forward(self, hidden_BSD: Tensor, table: Tensor, context: Context) -> Tensor:
        """Return the residual stream after this layer, `[batch, seq, hidden]`."""
        attended = self.self_attn(self.input_layernorm(hidden_BSD), table, context)
        attended = self.post_attention_layernorm(attended)
        hidden_BSD = hidden_BSD + self.self_attn_dropout(attended, context)
        transformed = self.mlp(self.pre_feedforward_layernorm(hidden_BSD))
        transformed = self.post_feedforward_layernorm(transformed)
        return hidden_BSD + self.mlp_dropout(transformed, context)


class Gemma(CausalLM):
    """A decoder-only language model.

    Args:
        config: sizes and options.
    """

    config: GemmaConfig

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_scale = config.hidden_size**0.5
        self.embed_dropout = Dropout(config.hidden_dropout, "embed")
        self.rotary = RotaryTable(
            config.head_dim, config.rope_theta, config.rope_scaling, config.max_position_embeddings
        )
        self.local_rotary = None
        if config.local_rope_theta is not None:
            self.local_rotary = RotaryTable(config.head_dim, config.local_rope_theta)
        self.layers = nn.ModuleDict(
            {str(index): GemmaLayer(config, index) for index in range(config.num_hidden_layers)}
        )
        self.norm = UnitOffsetRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.head_loss = HeadLoss(softcap=config.final_logit_softcapping)
        self.tie()

    def backbone(self, inputs: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """Return the hidden states `[batch, seq, hidden]` that the head takes.

        Args:
            inputs: as of `forward`.
            context: as of `forward`.
        """
        hidden_BSD = inputs
        if self.has("embed"):
            hidden_BSD = self.embed_dropout(self._scaled(self.embed(inputs)), context)
        if self.has("layers"):
            table = self.rotary(hidden_BSD, context.positions)
            local_table = table
            if self.local_rotary is not None:
                local_table = self.local_rotary(hidden_BSD, context.positions)
            for layer in self.layers.values():
                layer_table = local_table if layer.has_window else table
                hidden_BSD = layer(hidden_BSD, layer_table, context)
        return self.norm(hidden_BSD) if self.has("norm") else hidden_BSD

    def _scaled(self, embedded_BSD: Tensor) -> Tensor:
        """Return the embeddings times sqrt(hidden).

        The factor is rounded to their dtype first, as in training: in bf16 sqrt(3072) = 55.4 is
        55.5 (arXiv:2408.00118 does not tell; the published code does).
        """
        return embedded_BSD * embedded_BSD.new_full((), self.embed_scale)

    def init_rules(self) -> dict[str, Rule]:
        """Return patterns of parameter names to how they are initialized; the first one counts.

        The weight of a norm is how far its factors are from 1. The outputs of both residual
        branches start smaller, as in the other families.
        """
        std = self.config.initializer_range
        branch_std = std / (2 * self.config.num_hidden_layers) ** 0.5
        return {
            "*norm.weight": Constant(0.0),
            "*.bias": Constant(0.0),
            "*.o_proj.weight": Normal(branch_std),
            "*.down_proj.weight": Normal(branch_std),
            "*": Normal(std),
        }
