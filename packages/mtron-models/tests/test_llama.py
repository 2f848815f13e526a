import copy
import resource
import time

import pytest
import torch
from transformers import LlamaConfig as HuggingFaceConfig
from transformers import LlamaForCausalLM

from mtron_models import Context, LlamaConfig, RandomKey, build, initialize

CASES = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "one key-value head": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "plain heads": {"num_key_value_heads": 6},
    "free head_dim": {"hidden_size": 50, "num_attention_heads": 5, "num_key_value_heads": 5,
                      "head_dim": 14, "vocab_size": 67},
    "three heads": {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3,
                    "intermediate_size": 1, "num_hidden_layers": 1},
    "long": {"rope_theta": 500000.0, "rms_norm_eps": 1e-5},
}  # fmt: skip


def twin(model):
    """The same model in `transformers`, with the same weights."""
    config = model.config.model_dump(exclude={"hidden_dropout", "model_type"})
    theirs = LlamaForCausalLM(HuggingFaceConfig(**config, attn_implementation="eager"))
    theirs = theirs.to(next(model.parameters()).dtype)
    weights = {their_name(name): p for name, p in model.state_dict().items()}
    theirs.load_state_dict(weights)
    return theirs


def their_name(name):
    if name.startswith("head."):
        return name.replace("head.", "lm_head.")
    return "model." + name.replace("embed.", "embed_tokens.")


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(case, make_model, tokens, tolerances):
    model = make_model(initializer_range=0.1, **CASES[case])
    theirs = twin(model)
    inputs, labels = tokens(2, 67 if case == "long" else 19, model.config.vocab_size)
    expected = theirs(input_ids=inputs).logits
    logits = model(inputs)
    assert (logits - expected).abs().max() < tolerances.FP32_LOGITS
    flat = expected.flatten(0, 1)
    torch.nn.functional.cross_entropy(flat, labels.flatten()).backward()
    model.train_loss(inputs, labels, torch.full(labels.shape, 1 / labels.numel())).backward()

    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    largest = max(gradient.norm() for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        gradient = gradients.pop(their_name(name))
        scale = max(gradient.norm(), 0.01 * largest)
        assert (parameter.grad - gradient).norm() < tolerances.FP32_GRADIENT * scale, name
    assert not gradients


def test_train_loss_is_the_weighted_sum_of_the_tokens_losses(make_model, tokens):
    model = make_model(torch.float64)
    inputs, labels = tokens(3, 8)
    weights = torch.rand(3, 8, dtype=torch.float64)
    logits = model(inputs)
    per_token = -logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    loss = model.train_loss(inputs, labels, weights)
    assert loss.item() == pytest.approx((per_token * weights).sum().item(), rel=1e-12)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 24, 1000])
def test_loss_does_not_depend_on_the_chunks(chunk_tokens, make_model, tokens, tolerances):
    inputs, labels = tokens(3, 8)
    results = []
    for size in (10**6, chunk_tokens):
        model = make_model(torch.float64)
        model.head_loss.chunk_tokens = size
        loss = model.loss(model.backbone(inputs), labels)
        loss.sum().backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for whole, chunked in zip(*results, strict=True):
        difference = (whole - chunked).norm() / whole.norm()
        assert difference < tolerances.FP64_CHUNKED


def test_tied_head_is_one_parameter_that_survives_materializing(make_model, make_config):
    meta = build(make_config(tie_word_embeddings=True))
    assert [name for name, _ in meta.named_parameters()][-1] == "norm.weight"
    for model in (meta, meta.to_empty(device="cpu"), copy.deepcopy(meta), meta.double()):
        assert model.head.weight is model.embed.weight
        assert "head.weight" not in dict(model.named_parameters())
    untied = make_model()
    assert untied.head.weight is not untied.embed.weight


def test_positions_are_relative(make_model, tokens):
    model = make_model(torch.float64)
    inputs, _ = tokens(2, 9)
    expected = model(inputs)
    counted = torch.arange(9).expand(2, 9)
    assert torch.equal(model(inputs, Context(positions=counted)), expected)
    shifted = model(inputs, Context(positions=counted + torch.tensor([[5], [90]])))
    torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-11)
    stretched = model(inputs, Context(positions=counted * 3))
    assert (stretched - expected).abs().max() > 1e-3


def test_a_stage_without_layers_is_its_ends(make_model, tokens):
    model = make_model()
    inputs, _ = tokens(1, 4)
    del model.layers, model.norm, model.head
    assert torch.equal(model(inputs), model.embed(inputs))


def test_dtypes(make_model, tokens):
    inputs, labels = tokens(1, 8)
    for dtype in (torch.float64, torch.bfloat16):
        model = make_model(dtype, initializer_range=0.05)
        assert model(inputs).dtype == dtype
        loss = model.loss(model.backbone(inputs), labels)
        assert loss.dtype == torch.promote_types(dtype, torch.float32)
        exact = make_model(torch.float64, initializer_range=0.05)
        reference = exact.loss(exact.backbone(inputs), labels)
        assert (loss - reference).abs().max() < (0.05 if dtype == torch.bfloat16 else 1e-12)


def test_ops_are_replaceable_on_every_module(make_model, tokens):
    model = make_model(hidden_dropout=0.1)
    inputs, labels = tokens(1, 5)
    called = []

    def spy(name, op):
        def run(*args):
            called.append(name)
            return op(*args)

        return run

    for name, module in model.named_modules():
        for seam in ("op", "core"):
            if hasattr(module, seam):
                setattr(module, seam, spy(f"{name}.{seam}", getattr(module, seam)))
    context = Context(random=RandomKey(0, 0, torch.tensor([0])))
    model.train_loss(inputs, labels, torch.ones(1, 5), context)
    layer = [
        "input_layernorm.op",
        "self_attn.rotary.op",
        "self_attn.rotary.op",
        "self_attn.core",
        "self_attn_dropout.op",
        "post_attention_layernorm.op",
        "mlp.op",
        "mlp_dropout.op",
    ]
    layers = [f"layers.{i}.{name}" for i in range(3) for name in layer]
    assert called == ["embed_dropout.op", "rotary.op", *layers, "norm.op", "head_loss.op"]


def test_dropped_residual_branches_leave_the_residual(make_model, tokens):
    model = make_model(hidden_dropout=0.1)
    inputs, _ = tokens(1, 5)
    for layer in model.layers.values():
        layer.self_attn_dropout.op = layer.mlp_dropout.op = lambda x, *_: 0 * x
    model.embed_dropout.op = lambda x, *_: 2 * x
    del model.norm, model.head
    context = Context(random=RandomKey(0, 0, torch.tensor([0])))
    assert torch.equal(model(inputs, context), 2 * model.embed(inputs))


def test_a_model_cut_to_half_its_heads_computes_half_the_sum(make_model):
    model = make_model(torch.float64, num_key_value_heads=2, num_attention_heads=6)
    attention = model.layers["0"].self_attn
    x = torch.randn(2, 5, 48, dtype=torch.float64)
    table = model.rotary(x, None)
    parts = []
    for half in (0, 1):
        cut = copy.deepcopy(attention)
        for name in ("q_proj", "k_proj", "v_proj"):
            linear = getattr(cut, name)
            linear.weight = torch.nn.Parameter(linear.weight.chunk(2, dim=0)[half])
        cut.o_proj.weight = torch.nn.Parameter(cut.o_proj.weight.chunk(2, dim=1)[half])
        parts.append(cut(x, table, Context()))
    expected = attention(x, table, Context())
    torch.testing.assert_close(sum(parts), expected, rtol=0, atol=1e-12)


def test_a_meta_model_of_any_size_takes_no_memory():
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=16384,
        intermediate_size=53248,
        num_hidden_layers=16,
        num_attention_heads=128,
        num_key_value_heads=8,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    model = build(config)
    assert time.perf_counter() - start < 20
    assert all(p.is_meta for p in model.parameters())
    assert not list(model.buffers())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_building_does_not_touch_torchs_random_state(make_config):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = build(make_config(), device="cpu", dtype=torch.bfloat16)
    initialize(model, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
