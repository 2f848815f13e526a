import copy
from dataclasses import replace

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)

from mtron_models import Context
from mtron_models.attention_spec import AttentionSpec
from mtron_models.layers.latent_attention import LatentAttention, absorb
from mtron_models.layers.rotary import RotaryTable

HIDDEN, HEADS, LATENT, NOPE, ROPE, VALUE = 30, 6, 20, 12, 8, 10
CASES = {
    "plain": {},
    "without a latent of queries": {"q_lora_rank": None},
    "halves": {"rope_interleave": False},
    "biases": {"attention_bias": True},
}


def their_attention(q_lora_rank=14, **fields):
    """An attention layer of `transformers` with random weights, and its rotary embedding."""
    config = DeepseekV3Config(
        hidden_size=HIDDEN, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        q_lora_rank=q_lora_rank, kv_lora_rank=LATENT, qk_nope_head_dim=NOPE,
        qk_rope_head_dim=ROPE, v_head_dim=VALUE, attn_implementation="eager", **fields,
    )  # fmt: skip
    theirs = DeepseekV3Attention(config, 0).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).double() * 0.3
    return theirs, DeepseekV3RotaryEmbedding(config)


def our_attention(q_lora_rank=14, rope_interleave=True, attention_bias=False):
    return LatentAttention(
        HIDDEN, HEADS, q_lora_rank=q_lora_rank, kv_lora_rank=LATENT, qk_nope_head_dim=NOPE,
        qk_rope_head_dim=ROPE, v_head_dim=VALUE, spec=AttentionSpec(),
        interleaved=rope_interleave, bias=attention_bias,
    ).double()  # fmt: skip


@pytest.fixture
def pair():
    """The same attention layer here and in `transformers`."""

    def make(**fields):
        theirs, rotary = their_attention(**fields)
        ours = our_attention(**fields)
        ours.load_state_dict(theirs.state_dict())
        return ours, theirs, rotary

    return make


@pytest.fixture
def x():
    return torch.randn(
        2, 9, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def table_of(x):
    return RotaryTable(ROPE, 10000.0)(x, None)


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_both_forms_are_that_of_transformers(case, absorbed, pair, x, tolerances):
    ours, theirs, rotary = pair(**CASES[case])
    absorb(ours, absorbed)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    places = torch.arange(9)[None]
    causal = torch.full((9, 9), -torch.inf).triu(1)[None, None]
    expected, _ = theirs(inputs[0], rotary(x, places), causal)
    found = ours(inputs[1], table_of(x), Context())
    # They compute the softmax in fp32.
    assert (found - expected).abs().max() < tolerances.FP32_LOGITS
    for output in (expected, found):
        output.square().sum().backward()
    pairs = [(p.grad, dict(theirs.named_parameters())[n].grad) for n, p in ours.named_parameters()]
    pairs.append((inputs[1].grad, inputs[0].grad))
    for gradient, reference in pairs:
        assert (gradient - reference).norm() < tolerances.FP32_GRADIENT * reference.norm()


@pytest.mark.parametrize("case", CASES)
def test_absorbed_is_expanded(case, pair, x, tolerances):
    ours, _, _ = pair(**CASES[case])
    documents = Context(cu_seqlens=torch.tensor([0, 4, 9, 18]))
    for dtype, limit in ((torch.float64, tolerances.FP64_CACHED),
                         (torch.float32, tolerances.FP32_CACHED)):  # fmt: skip
        ours, x = ours.to(dtype), x.to(dtype)
        for context in (Context(), documents):
            absorb(ours, False)
            expected = ours(x, table_of(x), context)
            absorb(ours)
            assert (ours(x, table_of(x), context) - expected).abs().max() < limit


class LatentCache:
    """A core that keeps what `spec` says it must, and counts it."""

    def __init__(self, spec):
        self.spec = spec
        self.kept = None

    def __call__(self, q, k, v, context):
        assert v.shape[-1] == self.spec.values_in_keys
        self.kept = k if self.kept is None else torch.cat((self.kept, k), dim=2)
        v = self.kept[..., : self.spec.values_in_keys]
        scores = q @ self.kept.mT * self.spec.scale
        seen = torch.arange(self.kept.shape[2]) <= context.positions[:, None, :, None]
        return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v


def test_a_cache_keeps_latent_and_rotary_key_only(pair, x, tolerances):
    ours, _, _ = pair()
    table = table_of(x)
    expected = ours(x, table, Context())
    absorb(ours)
    ours.core = cache = LatentCache(ours.spec)
    parts = []
    for start, stop in ((0, 4), (4, 5), (5, 6), (6, 9)):
        context = Context(positions=torch.arange(start, stop).expand(2, -1))
        parts.append(ours(x[:, start:stop], table[start:stop], context))
    assert (torch.cat(parts, dim=1) - expected).abs().max() < tolerances.FP64_CACHED
    assert cache.kept.numel() == 2 * 9 * (LATENT + ROPE)
    assert LATENT + ROPE < HEADS * (NOPE + ROPE + VALUE)


@pytest.mark.parametrize("absorbed", [False, True])
def test_cut_to_half_its_heads_it_computes_half_the_sum(absorbed, pair, x, tolerances):
    ours, _, _ = pair()
    absorb(ours, absorbed)
    expected = ours(x, table_of(x), Context())
    parts = []
    for half in (0, 1):
        cut = copy.deepcopy(ours)
        for name, dim in (("q_b_proj", 0), ("kv_b_proj", 0), ("o_proj", 1)):
            linear = getattr(cut, name)
            linear.weight = torch.nn.Parameter(linear.weight.chunk(2, dim)[half])
        parts.append(cut(x, table_of(x), Context()))
    assert (sum(parts) - expected).abs().max() < tolerances.FP64_CACHED


def test_the_core_is_told_the_scale_and_where_values_are(pair):
    ours, _, _ = pair()
    expanded = AttentionSpec(scale=(NOPE + ROPE) ** -0.5)
    assert ours.spec == expanded
    absorb(ours)
    assert ours.spec == replace(expanded, values_in_keys=LATENT)
    absorb(ours, False)
    assert ours.spec == expanded


def test_there_must_be_something_to_absorb():
    with pytest.raises(ValueError, match="model: Linear has no latent attention"):
        absorb(torch.nn.Linear(2, 2))
