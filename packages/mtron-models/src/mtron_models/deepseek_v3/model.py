"""The DeepSeek-V3 decoder: tokens in, logits out.

Reference: DeepSeek-V3, arXiv:2412.19437, section 2. With equal weights the logits are those of
Hugging Face's `DeepseekV3ForCausalLM`, and what predicts further tokens is its `MtpModel`.

Shape suffixes: B batch, S sequence, D hidden.
"""

import torch
from torch import Tensor, nn

from mtron_models.causal_lm import NO_CONTEXT, CausalLM
from mtron_models.context import Context
from mtron_models.deepseek_v3.config import DeepseekV3Config
from mtron_models.init import Constant, Normal, Rule
from mtron_models.layers.dropout import Dropout
from mtron_models.layers.latent_attention import LatentAttention
from mtron_models.layers.mlp import GatedMLP
from mtron_models.layers.moe import MoE, moe_init_rules
from mtron_models.layers.multi_token import MultiTokenLayer, MultiTokenPrediction
from mtron_models.layers.norm import RMSNorm
from mtron_models.layers.rotary import RotaryTable


class DecoderLayer(nn.Module):
    """Latent attention, then experts or one feed-forward layer, each added to the residual stream.

    Args:
        config: sizes and options.
        index: of the layer; the first ones have no experts.
        name: of the layer in the model, `layers.<index>` or below `mtp`.
    """

    def __init__(self, config: DeepseekV3Config, index: int, name: str) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(hidden, eps)
        self.self_attn = LatentAttention(
            hidden,
            config.num_attention_heads,
            q_lora_rank=config.q_lora_rank,
            kv_lora_rank=config.kv_lora_rank,
            qk_nope_head_dim=config.qk_nope_head_dim,
            qk_rope_head_dim=config.qk_rope_head_dim,
            v_head_dim=config.v_head_dim,
            spec=config.attention_spec(index),
            interleaved=config.rope_interleave,
            bias=config.attention_bias,
        )
        self.self_attn_dropout = Dropout(config.hidden_dropout, f"{name}.self_attn")
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.is_dense = config.is_dense(index)
        if self.is_dense:
            self.mlp = GatedMLP(hidden, config.intermediate_size)
        else:
            self.mlp = MoE(
                hidden,
                config.moe_intermediate_size,
                config.router_spec(),
                site=f"{name}.mlp",
                shared_size=config.shared_expert_size,
            )
        self.mlp_dropout = Dropout(config.hidden_dropout, f"{name}.mlp")

    def forward(self, hidden_BSD: Tensor, table: Tensor, context: Context) -> Tensor:
        """Return the residual stream after this layer, `[batch, seq, hidden]`."""
        attended = self.self_attn(self.input_layernorm(hidden_BSD), table, context)
        hidden_BSD = hidden_BSD + self.self_attn_dropout(attended, context)
        normalized = self.post_attention_layernorm(hidden_BSD)
        transformed = self.mlp(normalized) if self.is_dense else self.mlp(normalized, context)
        return hidden_BSD + self.mlp_dropout(transformed, context)


class DeepseekV3(CausalLM):
    """A decoder-only language model that can also train on tokens further ahead.

    Besides the blocks of every decoder it has `mtp` where its configuration asks for it; it
    belongs to the stage that has the head.

    Args:
        config: sizes and options.
    """

    config: DeepseekV3Config

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_dropout = Dropout(config.hidden_dropout, "embed")
        self.rotary = RotaryTable(
            config.qk_rope_head_dim,
            config.rope_theta,
            config.rope_scaling,
            config.max_position_embeddings,
        )
        self.layers = nn.ModuleDict(
            {
                str(index): DecoderLayer(config, index, f"layers.{index}")
                for index in range(config.num_hidden_layers)
            }
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.num_nextn_predict_layers:
            self.mtp = MultiTokenPrediction(self.embed, further_layers(config))
        self.tie()

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

    def train_loss(
        self, inputs: Tensor, labels_BS: Tensor, weights_BS: Tensor, context: Context = NO_CONTEXT
    ) -> Tensor:
        """Return the sum of the tokens' losses, each times its weight: a scalar.

        While training with `mtp`, the loss of a place includes its predictions of further tokens,
        each times its own factor; their part of the sum is reported as `mtp.loss`. In evaluation
        it does not.

        Args:
            inputs: as of `forward`.
            labels_BS: as of `loss`.
            weights_BS: 1 / (valid tokens of the global batch) where a token counts, else 0.
            context: as of `forward`; `further_labels` are those of the further tokens.

        Raises:
            ValueError: training with `mtp`, and they are missing or for another number of tokens.
        """
        hidden_BSD = self.backbone(inputs, context)
        losses_BS = self.loss(hidden_BSD, labels_BS)
        if self.training and self.has("mtp"):
            further_BS = self._further_losses(hidden_BSD, labels_BS, context)
            context.report("mtp.loss", (further_BS * weights_BS).sum().detach())
            losses_BS = losses_BS + further_BS
        return (losses_BS * weights_BS).sum()

    def _further_losses(self, hidden_BSD: Tensor, labels_BS: Tensor, context: Context) -> Tensor:
        """Return the losses of all further tokens at each place, times their factors."""
        further = self.mtp.labels_of(context)
        next_tokens = [labels_BS, *further.labels.unbind(-1)]
        table = self.rotary(hidden_BSD, context.positions)
        states = self.mtp(hidden_BSD, next_tokens[:-1], table, context)
        pairs = zip(states, next_tokens[1:], strict=True)
        losses = torch.stack([self.loss(state, labels) for state, labels in pairs], dim=-1)
        return (losses * further.factors).sum(dim=-1)

    def tie(self) -> None:
        """Let the head use the embedding matrix, also the one that only `mtp` has kept."""
        super().tie()
        if self.config.tie_word_embeddings and self.has("mtp") and self.has("head"):
            self.head.weight = self.mtp.embed.weight

    def init_rules(self) -> dict[str, Rule]:
        """Return patterns of parameter names to how they are initialized; the first match counts.

        The outputs of both residual branches start smaller, so that the variance of the residual
        stream does not grow with depth (Radford et al., GPT-2, section 2.3). DeepSeek-V3 itself
        started all matrices alike, with `initializer_range = 0.006`.
        """
        std = self.config.initializer_range
        branch_std = std / (2 * self.config.num_hidden_layers) ** 0.5
        return {
            **moe_init_rules(std, branch_std, self.config.router_spec()),
            "*norm.weight": Constant(1.0),
            "*.bias": Constant(0.0),
            "*.o_proj.weight": Normal(branch_std),
            "*.down_proj.weight": Normal(branch_std),
            "*": Normal(std),
        }


def further_layers(config: DeepseekV3Config) -> list[MultiTokenLayer]:
    """Return the layers that predict further tokens; within each is a layer with experts."""
    hidden, eps, first = config.hidden_size, config.rms_norm_eps, config.num_hidden_layers
    return [
        MultiTokenLayer(
            hidden, eps, DecoderLayer(config, first + ahead, f"mtp.layers.{ahead}.block")
        )
        for ahead in range(config.num_nextn_predict_layers)
    ]
