"""GPT-2 against Hugging Face's, and what is its own: learned positions, field names."""

import json

import pytest
import torch
from transformers import GPT2Config as HuggingFaceConfig
from transformers import GPT2LMHeadModel

from mtron_models import (
    Context,
    GPT2Config,
    RandomKey,
    build,
    config_from_dict,
    initialize,
    key_of,
    num_parameters,
)
from mtron_models.layers.dropout import Dropout
from mtron_models.layers.embedding import PositionedEmbedding

CASES = {
    "tied": {},
    "untied, three heads": {"n_embd": 36, "n_head": 3, "tie_word_embeddings": False},
    "inner width, one head": {"n_inner": 50, "n_head": 1, "layer_norm_epsilon": 1e-3},
    "exact gelu": {"activation_function": "gelu", "vocab_size": 67},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "unscaled": {"scale_attn_weights": False, "n_layer": 1},
}
SIZES = {"vocab_size": 101, "n_positions": 32, "n_embd": 45, "n_layer": 3, "n_head": 5}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
THEIR_NAMES = {
    "embed": "transformer.wte",
    "embed.positions": "transformer.wpe",
    "input_layernorm": "ln_1",
    "self_attn.o_proj": "attn.c_proj",
    "post_attention_layernorm": "ln_2",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}
FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def pair(**fields):
    """Hugging Face's model and ours, with the same random weights."""
    fields = {**SIZES, **NO_DROPOUT, "bos_token_id": None, "eos_token_id": 3, **fields}
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(HuggingFaceConfig(**fields, attn_implementation="eager"))
    ours = build(config_from_dict(theirs.config.to_diff_dict()), device="cpu")
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        tensors = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            parameter.copy_(theirs_of(name, tensors))
    return theirs, ours


def theirs_of(name, tensors):
    """The tensor of theirs that our parameter `name` is: a third of `c_attn`, or transposed."""
    module, _, kind = name.rpartition(".")
    if not module.startswith("layers."):
        return tensors[f"{THEIR_NAMES[module]}.{kind}"]
    _, index, inner = module.split(".", 2)
    fused = tensors[f"transformer.h.{index}.attn.c_attn.{kind}"]
    if inner in FUSED:
        part = fused.chunk(3, dim=-1)[FUSED.index(inner)]
        return part.T if kind == "weight" else part
    tensor = tensors[f"transformer.h.{index}.{THEIR_NAMES[inner]}.{kind}"]
    return tensor.T if tensor.dim() == 2 else tensor


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(case, tokens, tolerances):
    theirs, ours = pair(**CASES[case])
    inputs, labels = tokens(2, 19, ours.config.vocab_size)
    expected = theirs(input_ids=inputs).logits
    assert (ours(inputs) - expected).abs().max() < tolerances.FP32_LOGITS
    flat = expected.flatten(0, 1)
    torch.nn.functional.cross_entropy(flat, labels.flatten()).backward()
    ours.train_loss(inputs, labels, torch.full(labels.shape, 1 / labels.numel())).backward()

    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    largest = max(gradient.norm() for gradient in gradients.values())
    for name, parameter in ours.named_parameters():
        gradient = theirs_of(name, gradients)
        scale = max(gradient.norm(), 0.01 * largest)
        assert (parameter.grad - gradient).norm() < tolerances.FP32_GRADIENT * scale, name


def test_positions_are_looked_up(tokens):
    theirs, ours = pair()
    inputs, _ = tokens(2, 9)
    positions = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 31], [0, 1, 0, 1, 2, 3, 4, 0, 1]])
    expected = theirs.transformer.wte(inputs) + theirs.transformer.wpe(positions)
    assert torch.equal(ours.embed(inputs, positions=positions), expected)
    del ours.layers, ours.norm, ours.head
    assert torch.equal(ours(inputs, Context(positions=positions)), expected)
    row = theirs.transformer.wte(inputs) + theirs.transformer.wpe(positions[0])
    assert torch.equal(ours(inputs, Context(positions=positions[0])), row)


def test_rows_longer_than_the_positions_are_refused():
    embedding = PositionedEmbedding(5, 8, 4)
    assert embedding(torch.zeros(1, 8, dtype=torch.int64)).shape == (1, 8, 4)
    with pytest.raises(ValueError, match=r"8 positions .* got rows of 9 tokens"):
        embedding(torch.zeros(1, 9, dtype=torch.int64))


def test_ranks_that_share_the_rows_add_every_position_once():
    """What a package does that cuts the vocabulary: look up the own rows, zero the others, sum."""
    whole = PositionedEmbedding(6, 8, 4).double()
    inputs = torch.tensor([[5, 0, 2, 3, 5]])
    weights = torch.randn(1, 5, 4, dtype=torch.float64)
    (whole(inputs) * weights).sum().backward()
    gradients, outputs = [], []
    for first in (0, 3):
        part = PositionedEmbedding(3, 8, 4).double()
        part.weight.data.copy_(whole.weight[first : first + 3])
        part.positions.weight.data.copy_(whole.positions.weight)
        foreign = (inputs < first) | (inputs >= first + 3)
        output = part((inputs - first).masked_fill(foreign, 0)).masked_fill(foreign[..., None], 0)
        (output * weights).sum().backward()
        outputs.append(output)
        gradients.append(part.positions.weight.grad)
    assert torch.equal(sum(outputs), whole(inputs))
    assert torch.equal(sum(gradients), whole.positions.weight.grad)


def test_dropout_does_not_depend_on_the_split_of_the_batch(tokens):
    config = GPT2Config(**SIZES, initializer_range=0.2)
    model = build(config, device="cpu", dtype=torch.float64)
    initialize(model, 0)
    inputs, labels = tokens(4, 9)
    ids = torch.tensor([12, 5, 7, 2**40])

    def loss(rows):
        context = Context(random=RandomKey(0, 3, ids[rows]))
        weights = torch.full(inputs[rows].shape, 1 / inputs.numel(), dtype=torch.float64)
        return model.train_loss(inputs[rows], labels[rows], weights, context).item()

    whole = loss(slice(None))
    assert loss([3, 0]) + loss([1]) + loss([2]) == pytest.approx(whole, rel=1e-13)
    for off in NO_DROPOUT:  # each of the three has a part in it
        without = build(config.model_copy(update={off: 0.0}), device="cpu", dtype=torch.float64)
        without.load_state_dict(model.state_dict())
        context = Context(random=RandomKey(0, 3, ids))
        changed = without.train_loss(inputs, labels, torch.ones(4, 9) / 36, context).item()
        assert abs(changed - whole) > 1e-6, off
    model.eval()
    assert torch.equal(model(inputs), model(inputs, Context(random=RandomKey(0, 3, ids))))


def test_every_branch_has_its_dropout():
    model = build(GPT2Config(**SIZES, embd_pdrop=0.1, resid_pdrop=0.2, attn_pdrop=0.3))
    found = {m.site: m.probability for m in model.modules() if isinstance(m, Dropout)}
    branches = [f"layers.{index}.{part}" for index in range(3) for part in ("self_attn", "mlp")]
    expected = {"embed": 0.1} | dict.fromkeys(branches, 0.2)
    assert found == {key_of(f"dropout/{site}"): p for site, p in expected.items()}
    assert {layer.self_attn.spec.dropout for layer in model.layers.values()} == {0.3}


PUBLISHED = {
    "small": (124_439_808, (768, 12, 12)),
    "medium": (354_823_168, (1024, 24, 16)),
    "large": (774_030_080, (1280, 36, 20)),
    "xl": (1_557_611_200, (1600, 48, 25)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    count, (hidden, layers, heads) = PUBLISHED[name]
    assert num_parameters(GPT2Config(n_embd=hidden, n_layer=layers, n_head=heads)) == count


FILE = """{
  "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
  "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
  "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
  "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null,
  "summary_first_dropout": 0.1, "summary_proj_to_labels": true, "summary_type": "cls_index",
  "summary_use_proj": true, "vocab_size": 50257,
  "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}
}"""


def test_the_published_file_is_the_default():
    assert config_from_dict(json.loads(FILE)) == GPT2Config()


def test_defaults_are_those_of_transformers():
    theirs = HuggingFaceConfig()
    for name, field in GPT2Config().model_dump().items():
        assert getattr(theirs, name) == field, name


def test_names_that_other_families_share():
    config = GPT2Config(n_embd=60, n_layer=2, n_head=5, n_positions=7)
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (60, 2, 240)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (5, 5, 12)
    assert config.max_position_embeddings == 7
    assert GPT2Config(n_inner=9).intermediate_size == 9


def test_the_token_between_documents_is_one_of_the_vocabulary():
    assert GPT2Config().eos_token_id == 50256
    assert GPT2Config(vocab_size=101).eos_token_id is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_embd": 50, "n_head": 12}, "n_embd: must be a multiple of n_head = 12, got 50; use 60"),
        ({"vocab_size": 9, "pad_token_id": 9}, "pad_token_id: is not a token of the vocabulary"),
        ({"add_cross_attention": True}, "add_cross_attention: only False can be honoured, got Tr"),
        ({"activation_function": "relu"}, "activation_function: input should be 'gelu_new', "),
        ({"attn_pdrop": 1.0}, "attn_pdrop: input should be less than 1, got 1.0"),
        ({"hidden_size": 5}, "hidden_size: unknown field, got 5"),
    ],
)
def test_error_names_field_value_and_remedy(fields, message):
    with pytest.raises(ValueError) as caught:
        config_from_dict({"model_type": "gpt2", **fields})
    assert str(caught.value).startswith(message)
