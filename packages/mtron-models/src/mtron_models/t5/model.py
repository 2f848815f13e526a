"""The T5 encoder-decoder: two sequences of tokens in, logits for the second one out.

Reference: Raffel et al., arXiv:1910.10683, section 2.1; version 1.1 (gates, head of its own) as
in Shazeer, arXiv:2002.05202. With equal weights the logits are those of Hugging Face's
`T5ForConditionalGeneration`.

Shape suffixes: B batch, S tokens of a sequence, T tokens of the decoder's, D hidden.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from mtron_models import ops
from mtron_models.block_model import NO_CONTEXT, BlockModel
from mtron_models.context import Context
from mtron_models.init import Constant, Normal, Rule
from mtron_models.layers.attention import Attention
from mtron_models.layers.cross_attention import CrossAttention
from mtron_models.layers.dropout import Dropout
from mtron_models.layers.norm import RMSNorm
from mtron_models.layers.relative_bias import RelativeBias
from mtron_models.t5.config import T5Config


class FeedForward(nn.Module):
    """`down(relu(up(x)))`, or `down(gelu(gate(x)) * up(x))`, with dropout before `down`."""

    def __init__(self, config: T5Config, site: str) -> None:
        super().__init__()
        self.gate_proj = None
        if config.is_gated:
            self.gate_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.op: Callable[..., Tensor] = ops.geglu if config.is_gated else ops.relu
        self.dropout = Dropout(config.dropout_rate, f"{site}.inside")
        self.width = config.d_ff

    def forward(self, x_BSD: Tensor, context: Context) -> Tensor:
        """Transform `[batch, seq, hidden]`, each token by itself.

        Raises:
            ValueError: training with dropout, and the columns are spread over several devices:
                whoever has a part of them cannot know which ones, as the mask must.
        """
        up = self.up_proj(x_BSD)
        inside = self.op(up) if self.gate_proj is None else self.op(self.gate_proj(x_BSD), up)
        if self.training and self.dropout.probability and inside.shape[-1] != self.width:
            raise ValueError(
                f"dropout_rate: needs all d_ff = {self.width} columns of a feed-forward block in "
                f"one place, got {inside.shape[-1]} of them; use dropout_rate = 0"
            )
        return self.down_proj(self.dropout(inside, context))


class Layer(nn.Module):
    """Attention to the own sequence and, in a decoder, to the memory; then a feed-forward layer.

    Each of them is added to the residual stream.

    Args:
        config: sizes and options.
        site: name of this layer in the model, for dropout.
        is_decoder: whether tokens see only those before them, and the memory.
    """

    def __init__(self, config: T5Config, site: str, *, is_decoder: bool) -> None:
        super().__init__()
        hidden, heads, eps = config.d_model, config.num_heads, config.layer_norm_epsilon
        self.is_decoder = is_decoder
        self.input_layernorm = RMSNorm(hidden, eps)
        self.self_attn = Attention(
            hidden,
            heads,
            heads,
            config.d_kv,
            spec=config.attention_spec(causal=is_decoder),
            site=f"{site}.self_attn",
        )
        self.self_attn_dropout = Dropout(config.dropout_rate, f"{site}.self_attn")
        if is_decoder:
            spec = config.attention_spec(causal=False)
            self.cross_attn_layernorm = RMSNorm(hidden, eps)
            self.cross_attn = CrossAttention(
                hidden, heads, config.d_kv, spec=spec, site=f"{site}.cross_attn"
            )
            self.cross_attn_dropout = Dropout(config.dropout_rate, f"{site}.cross_attn")
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.mlp = FeedForward(config, f"{site}.mlp")
        self.mlp_dropout = Dropout(config.dropout_rate, f"{site}.mlp")

    def forward(
        self, hidden_BSD: Tensor, bias: Tensor, context: Context, memory: Tensor | None = None
    ) -> Tensor:
        """Return the residual stream after this layer, `[batch, seq, hidden]`.

        Args:
            hidden_BSD: `[batch, seq, hidden]`.
            bias: of the attention scores, by relative positions.
            context: of this sequence.
            memory: `[batch, memory_seq, hidden]`, for a decoder.
        """
        attended = self.self_attn(self.input_layernorm(hidden_BSD), None, context, bias)
        hidden_BSD = hidden_BSD + self.self_attn_dropout(attended, context)
        if self.is_decoder:
            read = self.cross_attn(self.cross_attn_layernorm(hidden_BSD), memory, context)
            hidden_BSD = hidden_BSD + self.cross_attn_dropout(read, context)
        transformed = self.mlp(self.post_attention_layernorm(hidden_BSD), context)
        return hidden_BSD + self.mlp_dropout(transformed, context)


class Encoder(nn.Module):
    """The layers that read the first sequence. Any of them, and the norm, may be deleted."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.relative_bias = relative_bias(config, bidirectional=True)
        self.layers = nn.ModuleDict(
            {
                str(index): Layer(config, f"encoder.layers.{index}", is_decoder=False)
                for index in range(config.num_layers)
            }
        )
        self.norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.norm_dropout = Dropout(config.dropout_rate, "encoder.norm")

    def forward(self, hidden_BSD: Tensor, context: Context) -> Tensor:
        """Transform `[batch, seq, hidden]`."""
        if len(self.layers):
            places = torch.arange(hidden_BSD.shape[1], device=hidden_BSD.device)
            bias = self.relative_bias(places, places)
            for layer in self.layers.values():
                hidden_BSD = layer(hidden_BSD, bias, context)
        norm = getattr(self, "norm", None)
        return hidden_BSD if norm is None else self.norm_dropout(norm(hidden_BSD), context)


class T5(BlockModel):
    """An encoder, and a decoder that reads the encoder's output, the memory.

    Blocks: `embed` (of both sequences), `encoder` (with `layers` and `norm` of its own), and those
    of the decoder: `layers`, `norm`, `head`. A stage takes the memory and the hidden states as far
    as the stages before it brought them, and returns both; see `backbone`. Each of the two
    `relative_bias` goes with the layers that it serves.

    Args:
        config: sizes and options.
    """

    config: T5Config

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder_embed_dropout = Dropout(config.dropout_rate, "encoder.embed")
        self.embed_dropout = Dropout(config.dropout_rate, "embed")
        self.encoder = Encoder(config)
        self.relative_bias = relative_bias(config, bidirectional=False)
        self.layers = nn.ModuleDict(
            {
                str(index): Layer(config, f"layers.{index}", is_decoder=True)
                for index in range(config.num_decoder_layers)
            }
        )
        self.norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.norm_dropout = Dropout(config.dropout_rate, "norm")
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.head_scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        self.tie()

    def forward(
        self, inputs: Tensor, decoder_inputs: Tensor, context: Context = NO_CONTEXT
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return logits `[batch, target, vocab]`; without a head what `backbone` returns.

        Args:
            inputs: tokens for the encoder `[batch, source]`, int64; its hidden states
                `[batch, source, hidden]` where the embedding was deleted.
            decoder_inputs: tokens for the decoder `[batch, target]`, or its hidden states.
            context: randomness, caches, and positions and documents of the decoder's tokens
                (`cu_seqlens`); `memory_cu_seqlens` are the documents of the encoder's.
        """
        memory, hidden_BTD = self.backbone(inputs, decoder_inputs, context)
        return self.logits(hidden_BTD) if self.has("head") else (memory, hidden_BTD)

    def backbone(
        self, inputs: Tensor, decoder_inputs: Tensor, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, Tensor]:
        """Return the memory `[batch, source, hidden]` and hidden states `[batch, target, hidden]`.

        Both are the inputs of the next stage where blocks are missing here.

        Args:
            inputs: as of `forward`.
            decoder_inputs: as of `forward`.
            context: as of `forward`.
        """
        memory = self.encode(inputs, context)
        return memory, self.decode(decoder_inputs, memory, context)

    def encode(self, inputs: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """Return the memory `[batch, source, hidden]`.

        Args:
            inputs: as of `forward`.
            context: as of `forward`; of it, the encoder uses `memory_cu_seqlens` and `random`.

        Raises:
            ValueError: `random.token_index` is there: it cannot place the tokens of two sequences.
        """
        if context.random is not None and context.random.token_index is not None:
            raise ValueError(
                "context.random.token_index: places the tokens of one sequence, and an "
                "encoder-decoder model has two; leave rows whole and give None"
            )
        context = replace(
            context,
            positions=None,
            cu_seqlens=context.memory_cu_seqlens,
            max_seqlen=None,
            memory_cu_seqlens=None,
            caches=None,
        )
        hidden_BSD = inputs
        if self.has("embed"):
            hidden_BSD = self.encoder_embed_dropout(self.embed(inputs), context)
        return self.encoder(hidden_BSD, context) if self.has("encoder") else hidden_BSD

    def decode(
        self, decoder_inputs: Tensor, memory: Tensor | None, context: Context = NO_CONTEXT
    ) -> Tensor:
        """Return the hidden states `[batch, target, hidden]` that the head takes.

        Token by token, `context.positions` says where the new tokens stand, and attached cores
        keep keys and values in `context.caches`: those of all tokens from position 0 on, and those
        of the memory, which is then given in the first call only.

        Args:
            decoder_inputs: as of `forward`.
            memory: of `encode`; None where attached cores have kept its keys and values.
            context: as of `forward`.
        """
        hidden_BTD = decoder_inputs
        if self.has("embed"):
            hidden_BTD = self.embed_dropout(self.embed(decoder_inputs), context)
        if self.has("layers") and len(self.layers):
            bias = self._decoder_bias(hidden_BTD, context)
            for layer in self.layers.values():
                hidden_BTD = layer(hidden_BTD, bias, context, memory)
        if self.has("norm"):
            hidden_BTD = self.norm_dropout(self.norm(hidden_BTD), context)
        return hidden_BTD

    def _decoder_bias(self, hidden_BTD: Tensor, context: Context) -> Tensor:
        """Return the bias of the tokens' scores, with the kept keys if there are caches."""
        places = context.positions
        if places is None:
            places = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)
        keys = places
        if context.caches is not None:
            keys = torch.arange(int(places.max()) + 1, device=places.device)
        return self.relative_bias(places, keys)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Return the logits `[batch, target, vocab]` of hidden states of the decoder."""
        return self.head_loss.logits(self.head, hidden_BTD * self.head_scale)

    def loss(self, hidden_BTD: Tensor, labels_BT: Tensor) -> Tensor:
        """Return the loss of every token of the decoder, `[batch, target]` in nats, at least fp32.

        Args:
            hidden_BTD: of `backbone` or `decode`.
            labels_BT: the token that should come next, int64; already shifted, and a valid token
                also where it does not count.
        """
        return self.head_loss(self.head, hidden_BTD * self.head_scale, labels_BT)

    def train_loss(
        self,
        inputs: Tensor,
        decoder_inputs: Tensor,
        labels_BT: Tensor,
        weights_BT: Tensor,
        context: Context = NO_CONTEXT,
    ) -> Tensor:
        """Return the sum of the decoder's tokens' losses, each times its weight: a scalar.

        Args:
            inputs: as of `forward`.
            decoder_inputs: as of `forward`.
            labels_BT: as of `loss`.
            weights_BT: 1 / (valid labels of the global batch) where a token counts, else 0.
            context: as of `forward`.
        """
        _, hidden_BTD = self.backbone(inputs, decoder_inputs, context)
        return (self.loss(hidden_BTD, labels_BT) * weights_BT).sum()

    def init_rules(self) -> dict[str, Rule]:
        """Return patterns of parameter names to how they are initialized; the first one counts.

        Queries begin small by the square root of a head's width, which is why scores need no
        scale. A head of its own begins small enough for logits of about 1.
        """
        config, factor = self.config, self.config.initializer_factor
        width = Normal(factor * config.d_model**-0.5)
        return {
            "*norm.weight": Constant(factor),
            "embed.weight": Normal(factor),
            "*.q_proj.weight": Normal(factor * (config.d_model * config.d_kv) ** -0.5),
            "*.o_proj.weight": Normal(factor * (config.num_heads * config.d_kv) ** -0.5),
            "*.down_proj.weight": Normal(factor * config.d_ff**-0.5),
            "*": width,
        }


def relative_bias(config: T5Config, *, bidirectional: bool) -> RelativeBias:
    """Return the table of relative positions that the layers of one stack share."""
    return RelativeBias(
        config.relative_attention_num_buckets,
        config.relative_attention_max_distance,
        config.num_heads,
        bidirectional=bidirectional,
    )
