"""The reference of every op: the plainest form that is also fast without a compiler.

A module that calls one holds it as `self.op` (an attention core as `self.core`); fused kernels
with the same signature are attached there from outside, and are tested against these. "At least
fp32" means: 16-bit inputs are computed in fp32 and rounded once at the end, and fp64 stays fp64.

Shape suffixes: B batch, S sequence, D hidden, N query heads, K key-value heads, H head width,
V vocabulary, F feed-forward width, E experts.
"""

from mtron_models.ops.activations import geglu, gelu, gelu_tanh, relu, swiglu
from mtron_models.ops.attention import attention, attention_mask, document_of, same_document
from mtron_models.ops.cross_attention import cross_attention
from mtron_models.ops.dropout import keyed_dropout, keyed_weight_dropout
from mtron_models.ops.experts import expert_mlp
from mtron_models.ops.norms import layer_norm, rms_norm, unit_offset_rms_norm
from mtron_models.ops.numbers import at_least_fp32
from mtron_models.ops.relative_position import relative_buckets
from mtron_models.ops.rotary import rotary, rotary_interleaved, rotary_table
from mtron_models.ops.routing import (
    attach_loss,
    balancing_loss,
    choose_experts,
    count_experts,
    places_in_queue,
)

__all__ = [
    "at_least_fp32",
    "attach_loss",
    "attention",
    "attention_mask",
    "balancing_loss",
    "choose_experts",
    "count_experts",
    "cross_attention",
    "document_of",
    "expert_mlp",
    "geglu",
    "gelu",
    "gelu_tanh",
    "keyed_dropout",
    "keyed_weight_dropout",
    "layer_norm",
    "places_in_queue",
    "relative_buckets",
    "relu",
    "rms_norm",
    "rotary",
    "rotary_interleaved",
    "rotary_table",
    "same_document",
    "swiglu",
    "unit_offset_rms_norm",
]
