import copy
from fnmatch import fnmatchcase
from itertools import pairwise

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV3Config as HuggingFaceConfig
from transformers import DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel

from mtron_models import (
    Context,
    FurtherLabels,
    RandomKey,
    Report,
    absorb,
    build,
    config_from_dict,
    flops_per_token,
    initialize,
)

TINY = {
    "model_type": "deepseek_v3",
    "vocab_size": 101,
    "hidden_size": 30,
    "intermediate_size": 44,
    "moe_intermediate_size": 14,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "q_lora_rank": 14,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 12,
    "n_group": 3,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 1.3,
    "rope_theta": 10000.0,
}
CASES = {
    "plain": {},
    "without a latent of queries, tied": {"q_lora_rank": None, "tie_word_embeddings": True},
    "halves, biases": {"rope_interleave": False, "attention_bias": True, "rms_norm_eps": 1e-3},
    "yarn": {"rope_parameters": YARN, "max_position_embeddings": 64},
    "one group, weights not normalized": {"n_group": 1, "topk_group": 1, "norm_topk_prob": False},
    "wide values": {"v_head_dim": 22, "num_attention_heads": 3, "num_key_value_heads": 3},
}


def in_our_names(tensors):
    """What `transformers` calls its parameters, and what we call the same."""
    renamed = {}
    for name, tensor in tensors.items():
        ours = name.removeprefix("model.").replace("embed_tokens.", "embed.")
        ours = ours.replace("lm_head.", "head.").replace("shared_experts.", "shared_expert.")
        ours = ours.replace("gate.e_score_correction_bias", "router.bias")
        ours = ours.replace("mlp.gate.weight", "mlp.router.weight")
        if ours.endswith("experts.gate_up_proj"):
            parts = tensor.chunk(2, dim=1)
            for part, value in zip(("gate_proj", "up_proj"), parts, strict=True):
                renamed[ours.replace("gate_up_proj", part)] = value
        else:
            renamed[ours] = tensor
    return renamed


def in_mtp(name):
    """The same for what predicts further tokens, once within its layers."""
    return "mtp.layers." + name.replace("mtp_block.", "block.").replace("post_norm.", "norm.")


def draw(tensors, seed=0):
    """Fill with random values, large enough that all matters."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        values = torch.randn(tensor.shape, generator=generator) * 0.15
        tensor.data.copy_(1 + values if "norm" in name else values)


@pytest.fixture
def pair():
    """A model, and the one of `transformers` with equal weights."""

    def make(**fields):
        values = {**TINY, **fields}
        config = HuggingFaceConfig(**values, attn_implementation="eager")
        theirs = DeepseekV3ForCausalLM._from_config(config, experts_implementation="eager")
        draw(theirs.state_dict())
        tensors = in_our_names(theirs.state_dict())
        if values["num_nextn_predict_layers"]:
            theirs.mtp = MtpModel(theirs, values["num_nextn_predict_layers"])
            draw(theirs.mtp.layers.state_dict(), seed=1)
            further = in_our_names(theirs.mtp.layers.state_dict())
            tensors |= {in_mtp(name): tensor for name, tensor in further.items()}
            tensors["mtp.embed.weight"] = tensors["embed.weight"]
        ours = build(config_from_dict(values), device="cpu")
        ours.load_state_dict(tensors)
        return ours, theirs

    return make


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(case, pair, tokens, tolerances):
    ours, theirs = pair(**CASES[case])
    inputs, labels = tokens(2, 23)
    expected = theirs(input_ids=inputs).logits
    assert (ours(inputs) - expected).abs().max() < tolerances.FP32_LOGITS
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), labels.flatten()).backward()
    ours.train_loss(inputs, labels, torch.full(labels.shape, 1 / labels.numel())).backward()

    gradients = in_our_names({name: p.grad for name, p in theirs.named_parameters()})
    largest = max(gradient.norm() for gradient in gradients.values())
    for name, parameter in ours.named_parameters():
        if not parameter.requires_grad:
            assert name.endswith("router.bias") and parameter.grad is None
            continue
        gradient = gradients.pop(name)
        scale = max(gradient.norm(), 0.01 * largest)
        assert (parameter.grad - gradient).norm() < tolerances.FP32_GRADIENT * scale, name
    assert not gradients


@pytest.fixture
def make_model():
    """An initialized model of a tiny configuration."""

    def make(dtype=torch.float64, **fields):
        config = config_from_dict({**TINY, "initializer_range": 0.2, **fields})
        model = build(config, device="cpu", dtype=dtype)
        initialize(model, 0)
        return model

    return make


@pytest.fixture
def further_labels():
    """Labels of `depths` further tokens for rows of `seq` tokens, with some that do not count."""

    def make(inputs, depths, dtype):
        generator = torch.Generator().manual_seed(3)
        shape = (*inputs.shape, depths)
        labels = torch.randint(101, shape, generator=generator)
        factors = 0.1 + torch.rand(shape, generator=generator, dtype=dtype)
        for depth in range(depths):  # the last tokens of a row have none
            factors[:, inputs.shape[1] - 1 - depth :, depth] = 0
        return FurtherLabels(labels, factors)

    return make


def their_further_losses(theirs, hidden, next_tokens):
    """The loss of every further token, by the layers of `transformers` one after the other."""
    places = torch.arange(hidden.shape[1])[None]
    losses = []
    for depth, (known, wanted) in enumerate(pairwise(next_tokens)):
        hidden = theirs.mtp.forward_layer(depth, hidden, places, None, input_ids=known)
        logits = theirs.lm_head(hidden)
        losses.append(-logits.log_softmax(-1).gather(-1, wanted[..., None]).squeeze(-1))
    return torch.stack(losses, dim=-1)


FURTHER = {
    "two layers": {"num_nextn_predict_layers": 2},
    "one layer, tied": {"num_nextn_predict_layers": 1, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("case", FURTHER)
def test_further_tokens_are_predicted_as_by_transformers(
    case, pair, tokens, further_labels, tolerances
):
    ours, theirs = pair(**FURTHER[case])
    inputs, labels = tokens(2, 11)
    further = further_labels(inputs, FURTHER[case]["num_nextn_predict_layers"], torch.float32)
    weights = torch.rand(2, 11, generator=torch.Generator().manual_seed(4)) / 22
    loss = ours.train_loss(inputs, labels, weights, Context(further_labels=further))

    hidden = theirs.model(input_ids=inputs).last_hidden_state
    logits = theirs.lm_head(hidden)
    first = -logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    next_tokens = [labels, *further.labels.unbind(-1)]
    more = (their_further_losses(theirs, hidden, next_tokens) * further.factors).sum(-1)
    expected = ((first + more) * weights).sum()
    assert (loss - expected).abs() < tolerances.FP32_LOGITS

    loss.backward()
    expected.backward()
    theirs_by_name = dict(theirs.named_parameters())
    main = {n: p.grad for n, p in theirs_by_name.items() if not n.startswith("mtp.")}
    gradients = in_our_names(main)
    within = {n.removeprefix("mtp.layers."): p.grad for n, p in theirs_by_name.items()
              if n.startswith("mtp.layers.")}  # fmt: skip
    gradients |= {in_mtp(name): gradient for name, gradient in in_our_names(within).items()}
    largest = max(gradient.norm() for gradient in gradients.values())
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            gradient = gradients.pop(name)
            scale = max(gradient.norm(), 0.01 * largest)
            assert (parameter.grad - gradient).norm() < tolerances.FP32_GRADIENT * scale, name
    assert not gradients


def test_further_layers_change_no_logits_and_no_loss_of_evaluation(
    make_model, tokens, further_labels
):
    ours = make_model(num_nextn_predict_layers=2)
    plain = make_model()
    inputs, labels = tokens(2, 7)
    weights = torch.rand(2, 7, dtype=torch.float64)
    assert torch.equal(ours(inputs), plain(inputs))
    expected = plain.train_loss(inputs, labels, weights)
    report = Report()
    context = Context(further_labels=further_labels(inputs, 2, torch.float64), report=report)
    loss = ours.train_loss(inputs, labels, weights, context)
    assert loss > expected + 0.1
    assert (loss - report.values["mtp.loss"] - expected).abs() < 1e-12
    assert torch.equal(ours.eval().train_loss(inputs, labels, weights), expected)


def test_what_does_not_count_has_no_gradient(make_model, tokens, further_labels):
    model = make_model(num_nextn_predict_layers=2)
    inputs, labels = tokens(2, 7)
    further = further_labels(inputs, 2, torch.float64)
    elsewhere = torch.where(further.factors == 0, (further.labels + 1) % 101, further.labels)
    losses = [
        model.train_loss(
            inputs, labels, torch.ones(2, 7), Context(further_labels=FurtherLabels(drawn, f))
        )
        for drawn, f in (
            (further.labels, further.factors),
            (elsewhere, further.factors),
            (further.labels, 0 * further.factors),
        )
    ]
    # Of two tokens ahead the second one enters only places behind the last that counts.
    assert losses[0] == losses[1]
    assert losses[2] == model.eval().train_loss(inputs, labels, torch.ones(2, 7))


def test_training_further_layers_needs_their_labels(make_model, tokens, further_labels):
    model = make_model(num_nextn_predict_layers=2)
    inputs, labels = tokens(1, 5)
    weights = torch.ones(1, 5)
    with pytest.raises(ValueError, match=r"needed to train 2 layers .* got None"):
        model.train_loss(inputs, labels, weights)
    context = Context(further_labels=further_labels(inputs, 1, torch.float64))
    with pytest.raises(ValueError, match=r"further_labels.labels: must have 2 .* got 1$"):
        model.train_loss(inputs, labels, weights, context)


def test_the_last_stage_keeps_the_embedding_that_further_layers_use(
    make_model, tokens, further_labels
):
    model = make_model(num_nextn_predict_layers=2, hidden_dropout=0.1)
    first, last = copy.deepcopy(model), copy.deepcopy(model)
    del first.layers["2"], first.norm, first.head, first.mtp
    del last.layers["0"], last.layers["1"], last.embed
    inputs, labels = tokens(2, 6)
    weights = torch.rand(2, 6, dtype=torch.float64)
    further = further_labels(inputs, 2, torch.float64)
    context = Context(random=RandomKey(0, 1, torch.tensor([4, 9])), further_labels=further)
    model.train_loss(inputs, labels, weights, context).backward()
    last.train_loss(first(inputs, context), labels, weights, context).backward()
    gradients = {name: p.grad for name, p in first.named_parameters()}
    found = {name: p.grad for name, p in last.named_parameters()}
    gradients["embed.weight"] = gradients["embed.weight"] + found.pop("mtp.embed.weight")
    gradients |= found
    for name, parameter in model.named_parameters():
        gradient = gradients.pop(name)
        if parameter.requires_grad:
            assert torch.allclose(parameter.grad, gradient, rtol=0, atol=1e-12), name
    assert not gradients


def test_everything_is_covered_with_further_layers_too(make_model):
    for fields in ({}, {"q_lora_rank": None, "attention_bias": True, "n_shared_experts": 0}):
        model = make_model(num_nextn_predict_layers=2, **fields)
        config, table = model.config, model.layout()
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        assert list(config.parameter_shapes().items()) == list(shapes.items())
        for name in shapes:
            assert sum(fnmatchcase(name, pattern) for pattern in table) == 1, name
        for pattern in table:
            assert any(fnmatchcase(name, pattern) for name in shapes), pattern
        for name in shapes:
            if name.startswith("mtp.layers.0.block."):
                of_layer = name.replace("mtp.layers.0.block.", "layers.2.")
                assert rule_of(name, table) == rule_of(of_layer, table)


def rule_of(name, table):
    return next(rule for pattern, rule in table.items() if fnmatchcase(name, pattern))


def test_flops_with_further_layers_are_those_that_torch_counts(make_model, tokens, further_labels):
    model = make_model(torch.float32, num_nextn_predict_layers=2)
    inputs, labels = tokens(2, 9)
    context = Context(further_labels=further_labels(inputs, 2, torch.float32))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.train_loss(inputs, labels, torch.ones(2, 9), context).backward()
    assert counter.get_total_flops() == 2 * 9 * flops_per_token(model.config, 9)


def test_the_absorbed_model_is_the_same(make_model, tokens, tolerances):
    inputs, _ = tokens(2, 9)
    for dtype, limit in ((torch.float64, tolerances.FP64_CACHED),
                         (torch.float32, tolerances.FP32_CACHED)):  # fmt: skip
        model = make_model(dtype)
        expected = model(inputs)
        absorb(model)
        assert (model(inputs) - expected).abs().max() < limit


def test_on_the_last_stage_a_tied_head_keeps_the_embedding_of_further_layers(family_config):
    config = family_config("deepseek_v3", tie_word_embeddings=True, num_nextn_predict_layers=1)
    stage = build(config)
    del stage.embed
    for model in (stage, stage.to_empty(device="cpu")):
        assert model.head.weight is model.mtp.embed.weight
