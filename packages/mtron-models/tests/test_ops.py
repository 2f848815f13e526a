import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig as HuggingFaceConfig
from transformers.models.llama import modeling_llama as hugging_face

from mtron_models import Context, cross_entropy, ops, rope
from mtron_models.attention_spec import AttentionSpec


@pytest.fixture
def close(tolerances):
    limits = {
        torch.float64: tolerances.FP64_OP,
        torch.float32: tolerances.FP32_OP,
        torch.bfloat16: tolerances.BF16_OP,
    }

    def check(actual, expected, dtype):
        limit = limits[dtype]
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.double(), expected.double(), rtol=limit, atol=limit)

    return check


def table_of(positions, rotary_dim, theta, dtype):
    even = torch.arange(0, rotary_dim, 2, dtype=dtype)
    return ops.rotary_table(positions, rope.frequencies(even, theta), dtype)


CAUSAL = AttentionSpec()
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_is_torchs(dtype, close):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, 33, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.rand(33, generator=generator, dtype=torch.float64).to(dtype)
    expected = F.rms_norm(x.double(), (33,), weight.double(), 1e-3)
    close(ops.rms_norm(x, weight, 1e-3), expected, dtype)


def test_rms_norm_gradient_also_at_zero():
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: ops.rms_norm(x, w, 1e-3), (x, weight))
    zero = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
    ops.rms_norm(zero, weight, 1e-4).sum().backward()
    torch.testing.assert_close(zero.grad[0], weight.detach() * 100)


def test_rms_norm_rounds_once():
    x = torch.randn(64, 33).bfloat16()
    exact = F.rms_norm(x.double(), (33,), eps=1e-6)
    assert torch.equal(ops.rms_norm(x, torch.ones(33, dtype=x.dtype), 1e-6), exact.bfloat16())


def test_rms_norm_keeps_large_16_bit_values_finite():
    x = torch.full((1, 8), 300.0, dtype=torch.float16)
    assert torch.equal(ops.rms_norm(x, torch.ones(8, dtype=x.dtype), 1e-6), torch.ones_like(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_is_hugging_faces(dtype, close):
    config = HuggingFaceConfig(hidden_size=96, num_attention_heads=4, head_dim=24)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 300, 8, 1999, 6]])
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 5, 4, 24, dtype=dtype, generator=generator)
    theirs = hugging_face.LlamaRotaryEmbedding(config)
    cos, sin = (t.to(dtype) for t in theirs(x.float(), positions))
    expected, _ = hugging_face.apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
    table_dtype = torch.promote_types(dtype, torch.float32)
    table = table_of(positions, 24, 10000.0, table_dtype)
    assert table.dtype == table_dtype
    if dtype == torch.float64:  # theirs is computed in fp32
        assert (ops.rotary(x, table) - expected).abs().max() < 1e-3
    else:
        close(ops.rotary(x, table), expected, dtype)


def test_rotary_table_of_fp64_is_exact_to_fp64(close):
    table = table_of(torch.tensor([0, 5, 8191]), 6, 500000.0, torch.float64)
    frequencies = torch.tensor([500000.0 ** (-i / 3) for i in range(3)], dtype=torch.float64)
    angles = torch.tensor([0.0, 5.0, 8191.0], dtype=torch.float64)[:, None] * frequencies
    expected = torch.stack((angles.cos(), -angles.sin(), angles.sin()), dim=1)
    assert (table[:, 0] - expected).abs().max() < 1e-11  # rounding of an angle of 8191


def test_the_models_rotary_table_has_at_least_fp32(make_model):
    rotary = make_model().rotary
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert rotary(torch.zeros(1, 3, 4, dtype=dtype), None).dtype == expected


def test_rotary_keeps_lengths_and_depends_on_distance_only():
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator, dtype=torch.float64)

    def score(at, to):
        tables = [table_of(torch.tensor([p]), 8, 100.0, torch.float64) for p in (at, to)]
        return (ops.rotary(q, tables[0]) * ops.rotary(k, tables[1])).sum().item()

    assert score(0, 0) == pytest.approx((q * k).sum().item(), rel=1e-12)
    assert score(9, 4) == pytest.approx(score(105, 100), rel=1e-12)
    assert score(9, 4) != pytest.approx(score(4, 9), rel=1e-3)


def test_swiglu_is_hugging_faces(close):
    config = HuggingFaceConfig(hidden_size=6, intermediate_size=10, num_attention_heads=1)
    mlp = hugging_face.LlamaMLP(config)
    x = torch.randn(3, 6)
    expected = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
    close(ops.swiglu(mlp.gate_proj(x), mlp.up_proj(x)), expected, torch.float32)


def test_document_mask_token_by_token():
    boundaries, batch, seq = [0, 3, 3, 5, 11, 12], 2, 6
    context = Context(cu_seqlens=torch.tensor(boundaries, dtype=torch.int32))
    mask = ops.attention_mask(CAUSAL, context, batch, seq, torch.device("cpu"))
    assert mask.shape == (batch, 1, seq, seq)

    def document(token):
        return max(i for i, start in enumerate(boundaries) if start <= token)

    for row in range(batch):
        for query in range(seq):
            for key in range(seq):
                same = document(row * seq + query) == document(row * seq + key)
                assert mask[row, 0, query, key].item() == (same and key <= query)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_grouped_attention_is_attention_with_repeated_heads(kv_heads, close):
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(2, 6, 9, 4, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, 9, 4, generator=generator, dtype=torch.float64)
    attended = ops.attention(q, k, v, Context(), spec=CAUSAL)
    k, v = (t.repeat_interleave(6 // kv_heads, dim=1) for t in (k, v))
    scores = (q @ k.mT / 2).masked_fill(~torch.ones(9, 9).tril().bool(), float("-inf"))
    close(attended, scores.softmax(-1) @ v, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_is_computed_in_at_least_fp32(dtype, close):
    logits = torch.randn(2, 5, 40, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(40, (2, 5))
    loss = cross_entropy(logits, labels)
    expected = -logits.double().log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    close(loss, expected, torch.promote_types(dtype, torch.float32))
    loss.sum().backward()
    gradient = logits.detach().double().softmax(-1) - F.one_hot(labels, 40)
    close(logits.grad, gradient, dtype)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"softcap": 2.0}, {"bias": True}])
@pytest.mark.parametrize("documents", [False, True])
def test_attention_is_a_softmax_over_what_may_be_seen(causal, window, options, documents, close):
    generator = torch.Generator().manual_seed(3)
    q, k, v = (
        torch.randn(2, heads, 9, 4, generator=generator, dtype=torch.float64) for heads in (6, 2, 2)
    )
    fields = {name: value for name, value in options.items() if name != "bias"}
    spec = AttentionSpec(causal=causal, window=window, **fields)
    bias = torch.randn(6, 9, 9, generator=generator, dtype=torch.float64)
    bias = bias if "bias" in options else None
    boundaries = torch.tensor([0, 4, 9, 18], dtype=torch.int32)
    context = Context(cu_seqlens=boundaries if documents else None)
    attended = ops.attention(q, k, v, context, spec=spec, bias=bias)

    k, v = (t.repeat_interleave(3, dim=1) for t in (k, v))
    scores = (q @ k.mT) * options.get("scale", 0.5)
    if "softcap" in options:
        scores = 2.0 * (scores / 2.0).tanh()
    scores = scores if bias is None else scores + bias
    place = torch.arange(9)
    distance = place[:, None] - place
    seen = torch.ones(2, 9, 9, dtype=torch.bool)
    seen &= distance < (window or 99)
    seen &= (distance >= 0) if causal else (distance > -(window or 99))
    if documents:
        document = torch.tensor([[0] * 4 + [1] * 5, [2] * 9])
        seen &= document[:, :, None] == document[:, None, :]
    scores = scores.masked_fill(~seen[:, None], float("-inf"))
    close(attended, scores.softmax(-1) @ v, torch.float64)


@pytest.mark.parametrize("rotary_dim", [8, 4])
def test_interleaved_rotary_is_rotary_of_reordered_elements(rotary_dim, close):
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    table = table_of(torch.arange(5) * 7, rotary_dim, 100.0, torch.float64)
    order = torch.cat((torch.arange(0, rotary_dim, 2), torch.arange(1, rotary_dim, 2)))
    order = torch.cat((order, torch.arange(rotary_dim, 8)))
    expected = torch.empty_like(x)
    expected[..., order] = ops.rotary(x[..., order], table)
    close(ops.rotary_interleaved(x, table), expected, torch.float64)
    assert torch.equal(expected[..., rotary_dim:], x[..., rotary_dim:])


def test_layer_norm_is_torchs(close):
    x, weight, bias = torch.randn(3, 7), torch.rand(7), torch.randn(7)
    expected = F.layer_norm(x.double(), (7,), weight.double(), bias.double(), 1e-3)
    close(ops.layer_norm(x, weight, bias, 1e-3), expected, torch.float32)
