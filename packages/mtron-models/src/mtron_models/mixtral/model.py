"""Decoders with mixtures of experts: Mixtral and Qwen3-MoE, by configuration.

Everything but the feed-forward layers is as in `llama/model.py`. With equal weights the logits are
those of Hugging Face's `MixtralForCausalLM` and `Qwen3MoeForCausalLM`.

Reference: Jiang et al., arXiv:2401.04088, section 2.1.

Shape suffixes: B batch, S sequence, D hidden.
"""

from torch import Tensor

from mtron_models.context import Context
from mtron_models.init import Rule
from mtron_models.layers.moe import MoE, moe_init_rules
from mtron_models.llama.model import DecoderLayer, Llama
from mtron_models.mixtral.config import SparseDecoderConfig


class SparseDecoderLayer(DecoderLayer):
    """Attention, then a mixture of experts, each added to the residual stream."""

    def __init__(self, config: SparseDecoderConfig, index: int) -> None:
        super().__init__(config, index)
        self.mlp = MoE(
            config.hidden_size,
            config.expert_width,
            config.router_spec(),
            site=f"layers.{index}.mlp",
        )

    def feed_forward(self, x_BSD: Tensor, context: Context) -> Tensor:
        """Transform each token by the experts that it chooses, `[batch, seq, hidden]`."""
        return self.mlp(x_BSD, context)


class Mixtral(Llama):
    """A decoder-only language model with mixtures of experts in some or all layers.

    Args:
        config: sizes and options.
    """

    def layer(self, config: SparseDecoderConfig, index: int) -> DecoderLayer:
        """Return a new layer, with experts or without."""
        layer = SparseDecoderLayer if config.is_sparse(index) else DecoderLayer
        return layer(config, index)

    def init_rules(self) -> dict[str, Rule]:
        """Return patterns of parameter names to how they are initialized; the first match counts.

        Experts start as feed-forward layers of their own would, routers as other matrices.
        """
        config = self.config
        assert isinstance(config, SparseDecoderConfig)
        std = config.initializer_range
        branch_std = std / (2 * config.num_hidden_layers) ** 0.5
        return moe_init_rules(std, branch_std, config.router_spec()) | super().init_rules()
