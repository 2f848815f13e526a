import copy
from itertools import pairwise

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.t5.modeling_t5 import T5Attention

from mtron_models import Context, RandomKey, T5Config, build, config_from_dict, flops_per_token
from mtron_models.attention_spec import AttentionSpec
from mtron_models.layers.cross_attention import CrossAttention
from mtron_models.ops import relative_buckets

CASES = ["t5", "t5_with_gates"]


@pytest.fixture
def model_of(family_model):
    """A model without dropout whose positions and heads matter as much as its tokens."""

    def make(case, dtype=torch.float64, **fields):
        model = family_model(case, dtype, **{"dropout_rate": 0.0, **fields})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "relative_bias" in name or "q_proj" in name:
                    parameter.mul_(4)
        return model

    return make


@pytest.fixture
def pair(tokens):
    """Tokens of the encoder, of the decoder, and labels."""

    def make(batch, source, target, seed=0):
        return tokens(batch, source, seed=seed + 1)[0], *tokens(batch, target, seed=seed)

    return make


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("sizes", [(32, 128), (8, 12), (4, 3), (64, 1000)])
def test_buckets_are_those_of_transformers(sizes, bidirectional):
    distances = torch.arange(-1100, 1101)
    buckets = relative_buckets(distances, *sizes, bidirectional=bidirectional)
    expected = T5Attention._relative_position_bucket(distances, bidirectional, *sizes)
    assert torch.equal(buckets, expected)
    assert buckets[1100] == 0


@pytest.mark.parametrize("case", CASES)
def test_the_decoder_sees_the_past_and_the_whole_memory(case, model_of, pair):
    model = model_of(case)
    inputs, decoder_inputs, _ = pair(1, 7, 9)
    expected = model(inputs, decoder_inputs)
    changed = decoder_inputs.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 101
    difference = (model(inputs, changed) - expected).abs().amax(-1)[0]
    assert torch.equal(difference[:6], torch.zeros(6, dtype=torch.float64))
    assert bool((difference[6:] > 1e-6).all())
    changed = inputs.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 101
    assert bool(((model(changed, decoder_inputs) - expected).abs().amax(-1) > 1e-6).all())
    assert bool(((model.encode(changed) - model.encode(inputs)).abs().amax(-1) > 1e-6).all())


def test_order_matters_on_both_sides(model_of, pair):
    model = model_of("t5", num_layers=1)
    inputs, decoder_inputs, _ = pair(1, 7, 9)
    swapped = inputs[:, [1, 0, 2, 3, 4, 5, 6]]
    difference = model.encode(swapped)[:, 2:] - model.encode(inputs)[:, 2:]
    assert difference.abs().max() > 1e-6
    swapped = decoder_inputs[:, [1, 0, 2, 3, 4, 5, 6, 7, 8]]
    difference = model(inputs, swapped)[:, 2:] - model(inputs, decoder_inputs)[:, 2:]
    assert difference.abs().max() > 1e-6


def test_positions_are_relative(model_of, pair):
    model = model_of("t5")
    inputs, decoder_inputs, _ = pair(2, 7, 9)
    expected = model(inputs, decoder_inputs)
    counted = torch.arange(9).expand(2, 9)
    for shift in (torch.zeros(2, 1, dtype=torch.int64), torch.tensor([[5], [90]])):
        shifted = model(inputs, decoder_inputs, Context(positions=counted + shift))
        torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-12)
    stretched = model(inputs, decoder_inputs, Context(positions=counted * 3))
    assert (stretched - expected).abs().max() > 1e-3


def test_documents_are_as_if_alone(model_of, pair, tolerances):
    model = model_of("t5")
    inputs, decoder_inputs, _ = pair(2, 7, 9)
    context = Context(
        cu_seqlens=torch.tensor([0, 3, 9, 12, 18]), memory_cu_seqlens=torch.tensor([0, 4, 7, 8, 14])
    )
    packed = model(inputs, decoder_inputs, context).flatten(0, 1)
    bounds = zip(pairwise([0, 3, 9, 12, 18]), pairwise([0, 4, 7, 8, 14]), strict=True)
    for (start, end), (source_start, source_end) in bounds:
        source = inputs.flatten()[None, source_start:source_end]
        alone = model(source, decoder_inputs.flatten()[None, start:end])[0]
        assert (packed[start:end] - alone).abs().max() < tolerances.FP64_CACHED


def test_tokens_whose_document_the_memory_lacks_read_zeros(model_of, pair):
    model = model_of("t5")
    inputs, decoder_inputs, _ = pair(1, 7, 9)
    context = Context(cu_seqlens=torch.tensor([0, 5, 9]), memory_cu_seqlens=torch.tensor([0, 7, 7]))
    attention = model.layers["0"].cross_attn
    x, memory = model.embed(decoder_inputs), model.encode(inputs, context)
    read = attention(x, memory, context)
    assert torch.equal(read[:, 5:], torch.zeros_like(read[:, 5:]))
    torch.testing.assert_close(read[:, :5], attention(x[:, :5], memory, Context()))
    model(inputs, decoder_inputs, context)[:, :5].sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("own", "memory", "counts"), [([0, 9], None, "0 and 1"), (None, [0, 3, 7], "2 and 0"),
                                  ([0, 9], [0, 3, 7], "2 and 1")]
)  # fmt: skip
def test_documents_must_be_those_of_both_sequences(own, memory, counts, model_of, pair):
    model = model_of("t5")
    inputs, decoder_inputs, _ = pair(1, 7, 9)
    bounds = [None if each is None else torch.tensor(each) for each in (own, memory)]
    context = Context(cu_seqlens=bounds[0], memory_cu_seqlens=bounds[1])
    with pytest.raises(ValueError, match=rf"memory_cu_seqlens: .* got {counts}"):
        model(inputs, decoder_inputs, context)


class CachedCore:
    """An attention core attached from outside: keeps keys and values in `context.caches`."""

    def __init__(self, name, spec):
        self.name = name
        self.spec = spec

    def __call__(self, q, k, v, context, bias):
        if self.name in context.caches:
            old_k, old_v = context.caches[self.name]
            k, v = torch.cat((old_k, k), dim=2), torch.cat((old_v, v), dim=2)
        context.caches[self.name] = (k, v)
        later = torch.arange(k.shape[2]) > context.positions[:, None, :, None]
        scores = q @ k.mT * self.spec.scale + bias
        return scores.masked_fill(later, -torch.inf).softmax(-1) @ v


class CachedMemory:
    """A core of cross-attention that keeps the keys and values of the memory."""

    def __init__(self, name, spec):
        self.name = name
        self.spec = spec

    def __call__(self, q, k, v, context):
        if k is not None:
            context.caches[self.name] = (k, v)
        k, v = context.caches[self.name]
        return (q @ k.mT * self.spec.scale).softmax(-1) @ v


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lengths", [[21], [5] + [1] * 16, [1] * 21, [3, 6, 12]])
@torch.no_grad()
def test_cached_decoding_is_the_full_forward(case, lengths, model_of, pair, tolerances):
    model = model_of(case)
    inputs, decoder_inputs, _ = pair(2, 7, 21)  # more than max_distance, so that places matter
    expected = model(inputs, decoder_inputs)
    for index, layer in model.layers.items():
        layer.self_attn.core = CachedCore(f"self {index}", layer.self_attn.spec)
        layer.cross_attn.core = CachedMemory(f"cross {index}", layer.cross_attn.spec)
    memory, caches, parts, start = model.encode(inputs), {}, [], 0
    for piece in decoder_inputs.split(lengths, dim=1):
        positions = torch.arange(start, start + piece.shape[1]).expand(piece.shape)
        context = Context(positions=positions, caches=caches)
        parts.append(model.logits(model.decode(piece, memory, context)))
        memory, start = None, start + piece.shape[1]
    assert (torch.cat(parts, dim=1) - expected).abs().max() < tolerances.FP64_CACHED


def test_the_memory_may_be_left_out_only_where_it_was_kept(model_of, pair):
    model = model_of("t5")
    with pytest.raises(ValueError, match="memory: needed at every call, got None"):
        model.decode(pair(1, 7, 9)[1], None)


def stages(model):
    """Three stages: half of the encoder; the other half and a decoder layer; the rest."""
    first, middle, last = (copy.deepcopy(model) for _ in range(3))
    del first.layers, first.relative_bias, first.norm, first.head
    del first.encoder.layers["1"], first.encoder.layers["2"], first.encoder.norm
    del middle.embed, middle.norm, middle.head
    del middle.encoder.layers["0"], middle.layers["1"], middle.layers["2"]
    del last.embed, last.encoder, last.layers["0"]
    return first, middle, last


def test_stages_by_deletion_compose_to_the_model(model_of, pair):
    model = model_of("t5", tie_word_embeddings=False)
    inputs, decoder_inputs, labels = pair(2, 7, 9)
    weights = torch.full((2, 9), 1 / 18, dtype=torch.float64)
    model.train_loss(inputs, decoder_inputs, labels, weights).backward()

    first, middle, last = stages(model)
    states = middle(*first(inputs, decoder_inputs))
    assert torch.equal(last(*states), model(inputs, decoder_inputs))
    last.train_loss(*states, labels, weights).backward()
    gradients = {}
    for stage in (first, middle, last):
        for name, parameter in stage.named_parameters():
            gradients[name] = gradients.get(name, 0) + parameter.grad
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients.pop(name), parameter.grad, rtol=1e-10, atol=1e-14)
    assert not gradients


@pytest.mark.parametrize("case", CASES)
def test_train_loss_is_the_weighted_sum_of_the_tokens_losses(case, model_of, pair):
    model = model_of(case)
    inputs, decoder_inputs, labels = pair(3, 7, 8)
    weights = torch.rand(3, 8, dtype=torch.float64)
    logits = model(inputs, decoder_inputs)
    per_token = -logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    loss = model.train_loss(inputs, decoder_inputs, labels, weights)
    assert loss.item() == pytest.approx((per_token * weights).sum().item(), rel=1e-12)


def test_dropout_depends_on_the_sample_only_and_is_off_in_evaluation(model_of, pair):
    model = model_of("t5", dropout_rate=0.2)
    inputs, decoder_inputs, labels = pair(4, 7, 9)
    ids = torch.tensor([12, 5, 7, 2**40])

    def loss(rows):
        context = Context(random=RandomKey(0, 3, ids[rows]))
        weights = torch.full(labels[rows].shape, 1 / labels.numel(), dtype=torch.float64)
        parts = (each[rows] for each in (inputs, decoder_inputs, labels))
        return model.train_loss(*parts, weights, context).item()

    whole = loss(slice(None))
    assert loss([3, 0]) + loss([1]) + loss([2]) == pytest.approx(whole, rel=1e-13)
    model.eval()
    assert torch.equal(model(inputs, decoder_inputs), model(inputs, decoder_inputs))
    assert loss(slice(None)) != whole


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
def test_training_compiles_into_one_graph(family_model, pair):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = family_model("t5", torch.float32, num_layers=1, dropout_rate=0.1)
    compiled = torch.compile(model.train_loss, fullgraph=True, backend="aot_eager")
    for step in range(3):
        inputs, decoder_inputs, labels = pair(2, 7, 9, seed=step)
        context = Context(
            cu_seqlens=torch.tensor([0, 3 + step, 9, 12, 18]),
            memory_cu_seqlens=torch.tensor([0, 7, 7, 8, 14]),
            random=RandomKey(3, step, torch.tensor([step, 9])),
        )
        arguments = (inputs, decoder_inputs, labels, torch.rand(2, 9), context)
        torch.testing.assert_close(compiled(*arguments), model.train_loss(*arguments))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_every_dropout_has_a_place_of_its_own(family_model):
    model = family_model("t5", dropout_rate=0.1)
    sites = [module.site for module in model.modules() if hasattr(module, "site")]
    cores = [module.core for module in model.modules() if hasattr(module, "core")]
    sites += [core.keywords["site"] for core in cores]
    in_layers = 3 * 3 + 3 * 4 + 3 + 2 * 3  # on residual branches and inside; attention weights
    assert len(set(sites)) == len(sites) == 4 + in_layers


def test_dropout_that_cannot_be_the_same_everywhere_is_refused(family_model, pair):
    model = family_model("t5", dropout_rate=0.1)
    inputs, decoder_inputs, _ = pair(2, 7, 7)
    random = RandomKey(0, 0, torch.tensor([0, 1]))
    places = RandomKey(0, 0, torch.tensor([0, 1]), torch.arange(7))
    with pytest.raises(ValueError, match=r"context\.random\.token_index: places the tokens of one"):
        model(inputs, decoder_inputs, Context(random=places))
    mlp = model.layers["0"].mlp
    mlp.up_proj.weight = torch.nn.Parameter(mlp.up_proj.weight[:20])
    mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight[:, :20])
    with pytest.raises(ValueError, match=r"dropout_rate: needs all d_ff = 40 .* got 20"):
        model(inputs, decoder_inputs, Context(random=random))
    assert model.eval()(inputs, decoder_inputs).isfinite().all()


def test_a_model_cut_to_some_of_its_heads_computes_a_part_of_the_sum(model_of):
    model = model_of("t5")
    x, memory = (torch.randn(2, seq, 36, dtype=torch.float64) for seq in (5, 7))
    places = torch.arange(5)
    for name in ("self_attn", "cross_attn"):
        attention, parts = getattr(model.layers["0"], name), []
        arguments = (None, Context()) if name == "self_attn" else (memory, Context())
        for first, end in ((0, 1), (1, 3)):
            cut, table = copy.deepcopy(attention), copy.deepcopy(model.relative_bias)
            rows = slice(first * 10, end * 10)
            for linear in (cut.q_proj, cut.k_proj, cut.v_proj):
                linear.weight = torch.nn.Parameter(linear.weight[rows])
            cut.o_proj.weight = torch.nn.Parameter(cut.o_proj.weight[:, rows])
            table.table.weight = torch.nn.Parameter(table.table.weight[:, first:end])
            bias = (table(places, places),) if name == "self_attn" else ()
            parts.append(cut(x, *arguments, *bias))
        bias = (model.relative_bias(places, places),) if name == "self_attn" else ()
        expected = attention(x, *arguments, *bias)
        torch.testing.assert_close(sum(parts), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("case", "lengths"), [("t5", (13, 13)), ("t5", (11, 6)), ("t5_with_gates", (3, 17))]
)
def test_flops_are_those_that_torch_counts(case, lengths, family_config):
    config = family_config(case, dropout_rate=0.0)
    source, target = (torch.zeros(2, n, dtype=torch.int64, device="meta") for n in lengths)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        weights = torch.ones(target.shape, device="meta")
        build(config).train_loss(source, target, target, weights).backward()
    assert 3 * 2 * config.forward_flops(*lengths) == counter.get_total_flops()
    if lengths[0] == lengths[1]:
        assert 2 * 13 * flops_per_token(config, 13) == counter.get_total_flops()


def test_published_sizes():
    small = build(T5Config())
    assert sum(p.numel() for p in small.parameters()) == 60_506_624  # T5 small, "60M"
    version_1_1 = T5Config(d_ff=1024, num_layers=8, num_heads=6, feed_forward_proj="gated-gelu",
                           tie_word_embeddings=False)  # fmt: skip
    assert sum(p.numel() for p in build(version_1_1).parameters()) == 76_961_152


def test_keys_of_hugging_face():
    values = {"model_type": "t5", "d_model": 64, "feed_forward_proj": "gated-gelu",
              "tie_word_embeddings": False, "dense_act_fn": "gelu_new", "is_gated_act": True,
              "classifier_dropout": 0.0, "is_encoder_decoder": True, "n_positions": 512,
              "num_decoder_layers": None}  # fmt: skip
    config = config_from_dict(values)
    assert (config.num_decoder_layers, config.scale_decoder_outputs) == (6, False)
    assert config_from_dict({"model_type": "t5"}).scale_decoder_outputs
    assert config.hidden_size == 64
    assert config.num_attention_heads == config.num_key_value_heads == 8
    assert config.head_dim == 64
    assert config.intermediate_size == 2048


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dense_act_fn": "gelu_new"}, "dense_act_fn: contradicts feed_forward_proj = 'relu'"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj: .* got 'gated-silu'"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder: only True can be honoured"),
        ({"relative_attention_num_buckets": 6}, "num_buckets: must be a multiple of 4, got 6"),
        ({"relative_attention_max_distance": 16}, "max_distance: must be more than .* 16, got 16"),
        ({"decoder_start_token_id": 32128}, "decoder_start_token_id: is not a token"),
        ({"eos_token_id": 32128}, "eos_token_id: is not a token"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict({"model_type": "t5", **fields})


@pytest.mark.parametrize("spec", [AttentionSpec(), AttentionSpec(causal=False, window=4)])
def test_cross_attention_has_no_order(spec):
    with pytest.raises(ValueError, match=r"spec: tokens have no order .* use causal=False"):
        CrossAttention(8, 2, 4, spec=spec)
    with pytest.raises(ValueError, match=r"site: needed with spec\.dropout = 0\.1"):
        CrossAttention(8, 2, 4, spec=AttentionSpec(causal=False, dropout=0.1))
