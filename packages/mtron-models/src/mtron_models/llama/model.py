"""The Llama decoder: tokens in, logits out.

Reference: Touvron et al., arXiv:2302.13971, section 2.2; grouped-query attention as in
arXiv:2307.09288. With equal weights the logits are those of Hugging Face's `LlamaForCausalLM`.

Shape suffixes: B batch, S sequence, D hidden, V vocabulary.
"""

from typing import Any, Self

from torch import Tensor, nn

from mtron_models.context import Context
from mtron_models.init import Constant, Normal, Rule
from mtron_models.layers.attention import Attention
from mtron_models.layers.dropout import Dropout
from mtron_models.layers.loss import HeadLoss
from mtron_models.layers.mlp import SwiGLU
from mtron_models.layers.norm import RMSNorm
from mtron_models.layers.rotary import RotaryTable
from mtron_models.layout import Layout
from mtron_models.llama.config import LlamaConfig

NO_CONTEXT = Context()


class DecoderLayer(nn.Module):
    """Attention, then a feed-forward layer, each added to the residual stream."""

    def __init__(self, config: LlamaConfig, index: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(hidden, eps)
        self.self_attn = Attention(
            hidden, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        )
        self.attention_dropout = Dropout(config.hidden_dropout, f"layers.{index}.self_attn")
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.mlp = SwiGLU(hidden, config.intermediate_size)
        self.mlp_dropout = Dropout(config.hidden_dropout, f"layers.{index}.mlp")

    def forward(self, hidden_BSD: Tensor, table: Tensor, context: Context) -> Tensor:
        """Return the residual stream after this layer, `[batch, seq, hidden]`."""
        attended = self.self_attn(self.input_layernorm(hidden_BSD), table, context)
        hidden_BSD = hidden_BSD + self.attention_dropout(attended, context)
        transformed = self.mlp(self.post_attention_layernorm(hidden_BSD))
        return hidden_BSD + self.mlp_dropout(transformed, context)


class Llama(nn.Module):
    """A decoder-only language model.

    `embed`, any of `layers`, `norm` and `head` may be deleted: what is left is a stage, which
    takes hidden states where it has no `embed` and returns them where it has no `head`.

    Args:
        config: sizes and options.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_dropout = Dropout(config.hidden_dropout, "embed")
        self.rotary = RotaryTable(config.head_dim, config.rope_theta)
        self.layers = nn.ModuleDict(
            {str(index): DecoderLayer(config, index) for index in range(config.num_hidden_layers)}
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.head_loss = HeadLoss()
        self._tie()

    def forward(self, inputs: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """Return logits `[batch, seq, vocab]`, or hidden states where the head was deleted.

        Args:
            inputs: tokens `[batch, seq]`, int64; hidden states `[batch, seq, hidden]` where the
                embedding was deleted.
            context: positions, documents, randomness, caches.
        """
        hidden_BSD = self.backbone(inputs, context)
        return self.head(hidden_BSD) if self._has("head") else hidden_BSD

    def backbone(self, inputs: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """Return the hidden states `[batch, seq, hidden]` that the head takes.

        Args:
            inputs: as of `forward`.
            context: as of `forward`.
        """
        hidden_BSD = inputs
        if self._has("embed"):
            hidden_BSD = self.embed_dropout(self.embed(inputs), context)
        if self._has("layers"):
            table = self.rotary(hidden_BSD, context.positions)
            for layer in self.layers.values():
                hidden_BSD = layer(hidden_BSD, table, context)
        return self.norm(hidden_BSD) if self._has("norm") else hidden_BSD

    def loss(self, hidden_BSD: Tensor, labels_BS: Tensor) -> Tensor:
        """Return the loss of every token, `[batch, seq]` in nats, at least fp32.

        Args:
            hidden_BSD: of `backbone`.
            labels_BS: the token that should come next, int64; already shifted, and a valid token
                also where it does not count.
        """
        return self.head_loss(self.head, hidden_BSD, labels_BS)

    def train_loss(
        self, inputs: Tensor, labels_BS: Tensor, weights_BS: Tensor, context: Context = NO_CONTEXT
    ) -> Tensor:
        """Return the sum of the tokens' losses, each times its weight: a scalar.

        Args:
            inputs: as of `forward`.
            labels_BS: as of `loss`.
            weights_BS: 1 / (valid tokens of the global batch) where a token counts, else 0.
            context: as of `forward`.
        """
        return (self.loss(self.backbone(inputs, context), labels_BS) * weights_BS).sum()

    def layout(self) -> Layout:
        """Return the layout table: patterns of parameter names to how they may be cut."""
        return self.config.layout()

    def init_rules(self) -> dict[str, Rule]:
        """Return patterns of parameter names to how they are initialized; the first match counts.

        The outputs of both residual branches start smaller, so that the variance of the residual
        stream does not grow with depth (Radford et al., GPT-2, section 2.3).
        """
        std = self.config.initializer_range
        branch_std = std / (2 * self.config.num_hidden_layers) ** 0.5
        return {
            "*norm.weight": Constant(1.0),
            "*.o_proj.weight": Normal(branch_std),
            "*.down_proj.weight": Normal(branch_std),
            "*": Normal(std),
        }

    def _has(self, name: str) -> bool:
        """Whether the block `name` was not deleted (`del model.head` or `model.head = None`)."""
        return self._modules.get(name) is not None

    def _tie(self) -> None:
        if self.config.tie_word_embeddings and self._has("embed") and self._has("head"):
            self.head.weight = self.embed.weight

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Keep the head tied where `to_empty` and others replace every parameter."""
        super()._apply(fn, recurse)
        self._tie()
        return self
