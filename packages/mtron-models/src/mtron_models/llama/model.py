"""The Llama decoder: tokens in, logits out. Also Mistral, Qwen 2 and Qwen 3, by configuration.

Reference: Touvron et al., arXiv:2302.13971, section 2.2; grouped-query attention as in
arXiv:2307.09288. With equal weights the logits are those of Hugging Face's `LlamaForCausalLM`,
`MistralForCausalLM`, `Qwen2ForCausalLM` and `Qwen3ForCausalLM`.

Shape suffixes: B batch, S sequence, D hidden.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn

from mtron_models.causal_lm import NO_CONTEXT, CausalLM
from mtron_models.context import Context
from mtron_models.init import Constant, Normal, Rule
from mtron_models.layers.attention import Attention
from mtron_models.layers.dropout import Dropout
from mtron_models.layers.mlp import GatedMLP
from mtron_models.layers.norm import RMSNorm
from mtron_models.layers.rotary import RotaryTable
from mtron_models.llama.config import PlainDecoderConfig


class DecoderLayer(nn.Module):
    """Attention, then a feed-forward layer, each added to the residual stream."""

    mlp: nn.Module

    def __init__(self, config: PlainDecoderConfig, index: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(hidden, eps)
        self.self_attn = Attention(
            hidden,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            spec=config.attention_spec(index),
            bias=config.qkv_bias,
            output_bias=config.output_bias,
            head_norm=partial(RMSNorm, eps=eps) if config.has_head_norms else None,
        )
        self.self_attn_dropout = Dropout(config.hidden_dropout, f"layers.{index}.self_attn")
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.mlp = GatedMLP(hidden, config.intermediate_size, bias=config.feed_forward_bias)
        self.mlp_dropout = Dropout(config.hidden_dropout, f"layers.{index}.mlp")

    def forward(self, hidden_BSD: Tensor, table: Tensor, context: Context) -> Tensor:
        """Return the residual stream after this layer, `[batch, seq, hidden]`."""
        attended = self.self_attn(self.input_layernorm(hidden_BSD), table, context)
        hidden_BSD = hidden_BSD + self.self_attn_dropout(attended, context)
        transformed = self.feed_forward(self.post_attention_layernorm(hidden_BSD), context)
        return hidden_BSD + self.mlp_dropout(transformed, context)

    def feed_forward(self, x_BSD: Tensor, context: Context) -> Tensor:
        """Transform each token by itself, `[batch, seq, hidden]`.

        A seam: `mixtral` puts experts here, which need the context.
        """
        del context
        return self.mlp(x_BSD)


class Llama(CausalLM):
    """A decoder-only language model.

    Args:
        config: sizes and options.
    """

    config: PlainDecoderConfig

    def __init__(self, config: PlainDecoderConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_dropout = Dropout(config.hidden_dropout, "embed")
        self.rotary = RotaryTable(
            config.head_dim, config.rope_theta, config.rope_scaling, config.max_position_embeddings
        )
        self.layers = nn.ModuleDict(
            {str(index): self.layer(config, index) for index in range(config.num_hidden_layers)}
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie()

    def layer(self, config: Any, index: int) -> DecoderLayer:
        """Return a new layer; families that differ in some of theirs have another here."""
        return DecoderLayer(config, index)

    def backbone(self, inputs: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """Return the hidden states `[batch, seq, hidden]` that the head takes.

        Args:
            inputs: as of `forward`.
            context: as of `forward`.
        """
        hidden_BSD = inputs
        if self.has("embed"):
            hidden_BSD = self.embed_dropout(self.embed(inputs), context)
        if self.has("layers"):
            table = self.rotary(hidden_BSD, context.positions)
            for layer in self.layers.values():
                hidden_BSD = layer(hidden_BSD, table, context)
        return self.norm(hidden_BSD) if self.has("norm") else hidden_BSD

    def init_rules(self) -> dict[str, Rule]:
        """Return patterns of parameter names to how they are initialized; the first match counts.

        The outputs of both residual branches start smaller, so that the variance of the residual
        stream does not grow with depth (Radford et al., GPT-2, section 2.3).
        """
        std = self.config.initializer_range
        branch_std = std / (2 * self.config.num_hidden_layers) ** 0.5
        return {
            "*norm.weight": Constant(1.0),
            "*.bias": Constant(0.0),
            "*.o_proj.weight": Normal(branch_std),
            "*.down_proj.weight": Normal(branch_std),
            "*": Normal(std),
        }
