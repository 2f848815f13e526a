"""GPT-2: tokens in, logits out.

Reference: Radford et al., "Language models are unsupervised multitask learners", 2019, section
2.3. With equal weights the logits are those of Hugging Face's `GPT2LMHeadModel`.

Shape suffixes: B batch, S sequence, D hidden.
"""

from torch import Tensor, nn

from mtron_models import ops
from mtron_models.causal_lm import NO_CONTEXT, CausalLM
from mtron_models.context import Context
from mtron_models.gpt2.config import GPT2Config
from mtron_models.init import Constant, Normal, Rule
from mtron_models.layers.attention import Attention
from mtron_models.layers.dropout import Dropout
from mtron_models.layers.embedding import PositionedEmbedding
from mtron_models.layers.mlp import MLP
from mtron_models.layers.norm import LayerNorm

ACTIVATIONS = {
    "gelu_new": ops.gelu_tanh,
    "gelu_pytorch_tanh": ops.gelu_tanh,
    "gelu": ops.gelu,
}


class GPT2Layer(nn.Module):
    """Attention, then a feed-forward layer, each added to the residual stream."""

    def __init__(self, config: GPT2Config, index: int) -> None:
        super().__init__()
        hidden, eps = config.n_embd, config.layer_norm_epsilon
        site = f"layers.{index}.self_attn"
        self.input_layernorm = LayerNorm(hidden, eps)
        self.self_attn = Attention(
            hidden,
            config.n_head,
            config.n_head,
            config.head_dim,
            spec=config.attention_spec(index),
            bias=True,
            output_bias=True,
            site=site,
        )
        self.self_attn_dropout = Dropout(config.resid_pdrop, site)
        self.post_attention_layernorm = LayerNorm(hidden, eps)
        activation = ACTIVATIONS[config.activation_function]
        self.mlp = MLP(hidden, config.intermediate_size, op=activation)
        self.mlp_dropout = Dropout(config.resid_pdrop, f"layers.{index}.mlp")

    def forward(self, hidden_BSD: Tensor, context: Context) -> Tensor:
        """Return the residual stream after this layer, `[batch, seq, hidden]`."""
        attended = self.self_attn(self.input_layernorm(hidden_BSD), None, context)
        hidden_BSD = hidden_BSD + self.self_attn_dropout(attended, context)
        transformed = self.mlp(self.post_attention_layernorm(hidden_BSD))
        return hidden_BSD + self.mlp_dropout(transformed, context)


class GPT2(CausalLM):
    """A decoder-only language model with learned positions.

    Args:
        config: sizes and options.
    """

    config: GPT2Config

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.embed = PositionedEmbedding(config.vocab_size, config.n_positions, config.n_embd)
        self.embed_dropout = Dropout(config.embd_pdrop, "embed")
        self.layers = nn.ModuleDict(
            {str(index): GPT2Layer(config, index) for index in range(config.n_layer)}
        )
        self.norm = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie()

    def backbone(self, inputs: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """Return the hidden states `[batch, seq, hidden]` that the head takes.

        Args:
            inputs: as of `forward`.
            context: as of `forward`.
        """
        hidden_BSD = inputs
        if self.has("embed"):
            embedded = self.embed(inputs, positions=context.positions)
            hidden_BSD = self.embed_dropout(embedded, context)
        if self.has("layers"):
            for layer in self.layers.values():
                hidden_BSD = layer(hidden_BSD, context)
        return self.norm(hidden_BSD) if self.has("norm") else hidden_BSD

    def init_rules(self) -> dict[str, Rule]:
        """Return patterns of parameter names to how they are initialized; the first one counts.

        The outputs of both residual branches start smaller, so that the variance of the residual
        stream does not grow with depth.
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
