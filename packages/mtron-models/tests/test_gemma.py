"""Gemma 2 and 3 against Hugging Face's, and what is their own: norms, scaling, rotary bases."""

import math

import pytest
import torch
from transformers import Gemma2Config as TheirGemma2Config
from transformers import Gemma2ForCausalLM, Gemma3ForCausalLM
from transformers import Gemma3TextConfig as TheirGemma3Config
from transformers.models.gemma2 import modeling_gemma2 as hugging_face

from mtron_models import (
    Context,
    Gemma2Config,
    Gemma3TextConfig,
    build,
    config_from_dict,
    num_parameters,
    ops,
)

SIZES = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "query_pre_attn_scalar": 9,
    "sliding_window": 4,
    "initializer_range": 0.1,
}
FULL, SLIDING = "full_attention", "sliding_attention"
SCALED = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
CASES = {
    "2": ("gemma2", {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}),
    "2, no bounds, untied": ("gemma2", {"attn_logit_softcapping": None, "vocab_size": 67,
                                        "final_logit_softcapping": None,
                                        "tie_word_embeddings": False}),
    "2, biases, three heads": ("gemma2", {"attention_bias": True, "num_attention_heads": 3,
                                          "num_key_value_heads": 1, "head_dim": 14}),
    "2, scaled": ("gemma2", {"rope_parameters": SCALED, "layer_types": [FULL, FULL, SLIDING]}),
    "3": ("gemma3_text", {"sliding_window_pattern": 2}),
    "3, untied, all full": ("gemma3_text", {"layer_types": [FULL] * 3, "attention_bias": True,
                                            "tie_word_embeddings": False}),
    "3, scaled": ("gemma3_text", {"layer_types": [SLIDING, SLIDING, FULL],
                                  "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                                  "rope_theta": 5e4, "rope_local_base_freq": 50.0,
                                  "final_logit_softcapping": 3.0}),
}  # fmt: skip


def their_name(name):
    if name.startswith("head."):
        return name.replace("head.", "lm_head.")
    return "model." + name.replace("embed.", "embed_tokens.")


def pair(family, fields):
    """Hugging Face's model and ours, with the same random weights."""
    config, model = {
        "gemma2": (TheirGemma2Config, Gemma2ForCausalLM),
        "gemma3_text": (TheirGemma3Config, Gemma3ForCausalLM),
    }[family]
    torch.manual_seed(0)
    # With a pad_token_id theirs never lets that token's embedding learn; here it is one of many.
    fields = {**SIZES, "pad_token_id": None, **fields}
    theirs = model(config(**fields, attn_implementation="eager"))
    ours = build(config_from_dict(theirs.config.to_diff_dict()), device="cpu")
    tensors = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            tensor = tensors[their_name(name)]
            tensor.add_(0.1 * torch.randn_like(tensor))
            parameter.copy_(tensor)
    return theirs, ours


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(case, tokens, tolerances):
    theirs, ours = pair(*CASES[case])
    inputs, labels = tokens(2, 19, ours.config.vocab_size)
    expected = theirs(input_ids=inputs).logits
    assert (ours(inputs) - expected).abs().max() < tolerances.FP32_LOGITS
    flat = expected.flatten(0, 1)
    torch.nn.functional.cross_entropy(flat, labels.flatten()).backward()
    ours.train_loss(inputs, labels, torch.full(labels.shape, 1 / labels.numel())).backward()

    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    largest = max(gradient.norm() for gradient in gradients.values())
    for name, parameter in ours.named_parameters():
        gradient = gradients.pop(their_name(name))
        scale = max(gradient.norm(), 0.01 * largest)
        assert (parameter.grad - gradient).norm() < tolerances.FP32_GRADIENT * scale, name
    assert not gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_is_hugging_faces(dtype, tolerances):
    norm = hugging_face.Gemma2RMSNorm(33, eps=1e-3)
    norm.weight.data.normal_()
    norm = norm.to(dtype)
    x = torch.randn(5, 7, 33).to(dtype)
    normalized = ops.unit_offset_rms_norm(x, norm.weight, 1e-3)
    limit = tolerances.FP32_OP if dtype == torch.float32 else tolerances.BF16_OP
    torch.testing.assert_close(normalized, norm(x), rtol=limit, atol=limit)


def test_norm_rounds_once():
    x, weight = torch.randn(64, 33).bfloat16(), torch.randn(33).bfloat16()
    exact = torch.nn.functional.rms_norm(x.double(), (33,), 1.0 + weight.double(), 1e-6)
    assert torch.equal(ops.unit_offset_rms_norm(x, weight, 1e-6), exact.bfloat16())


def test_gradient_of_the_norm():
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    norm = ops.unit_offset_rms_norm
    assert torch.autograd.gradcheck(lambda x, w: norm(x, w, 1e-3), (x, weight))


def test_embeddings_are_scaled_as_in_their_dtype(tokens):
    inputs, _ = tokens(1, 6)
    for dtype in (torch.float32, torch.bfloat16):
        theirs = hugging_face.Gemma2TextScaledWordEmbedding(101, 50, 0, embed_scale=50**0.5)
        model = build(Gemma2Config(**{**SIZES, "hidden_size": 50}), device="cpu", dtype=dtype)
        theirs = theirs.to(dtype)
        model.embed.weight.data.copy_(theirs.weight)
        del model.layers, model.norm, model.head
        assert torch.equal(model(inputs), theirs(inputs))


def test_rotary_bases_are_of_the_kind_of_layer(tokens):
    config = Gemma3TextConfig(**SIZES, sliding_window_pattern=2, rope_theta=1e6)
    model = build(config, device="cpu", dtype=torch.float64)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inputs, _ = tokens(1, 9)
    tables = []
    for layer in model.layers.values():
        original = layer.forward
        layer.forward = lambda x, table, context, f=original: (
            tables.append(table) or f(x, table, context)
        )
    positions = torch.tensor([3, 4, 5, 6, 7, 8, 9, 10, 90])
    model(inputs, Context(positions=positions))
    cosines = [table[-1, 0, 0, 1].item() for table in tables]  # of the last token's second pair
    turns = [base ** (-2 / config.head_dim) for base in (1e4, 1e6, 1e4)]
    assert cosines == pytest.approx([math.cos(90 * turn) for turn in turns], abs=1e-12)
    assert torch.equal(tables[0], tables[2])


PUBLISHED = {
    "Gemma 2 2B": (2_614_341_888, Gemma2Config, (256000, 2304, 9216, 26, 8, 4, 256)),
    "Gemma 2 9B": (9_241_705_984, Gemma2Config, (256000, 3584, 14336, 42, 16, 8, 256)),
    "Gemma 2 27B": (27_227_128_320, Gemma2Config, (256000, 4608, 36864, 46, 32, 16, 128)),
    "Gemma 3 270M": (268_098_176, Gemma3TextConfig, (262144, 640, 2048, 18, 4, 1, 256)),
    "Gemma 3 1B": (999_885_952, Gemma3TextConfig, (262144, 1152, 6912, 26, 4, 1, 256)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    count, config, (vocab, hidden, intermediate, layers, heads, kv_heads, head_dim) = PUBLISHED[
        name
    ]
    sizes = config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
    )
    assert num_parameters(sizes) == count


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(Gemma2Config, TheirGemma2Config), (Gemma3TextConfig, TheirGemma3Config)],
)
def test_defaults_are_those_of_transformers(ours, theirs):
    required = {
        name: SIZES[name] for name, field in ours.model_fields.items() if field.is_required()
    } | {"num_attention_heads": 8}
    default = theirs(**required)
    for name, value in ours(**required).model_dump(exclude={"hidden_dropout"}).items():
        match name:
            case "layer_types":
                specs = [ours(**required).attention_spec(i).window for i in range(3)]
                assert [SLIDING if window else FULL for window in specs] == default.layer_types
            case "rope_theta" | "rope_local_base_freq":
                kind = FULL if name == "rope_theta" else SLIDING
                rope = default.rope_parameters
                assert rope.get(kind, rope)["rope_theta"] == value
            case "rope_scaling":
                assert value is None
            case "sliding_window_pattern":
                assert value == default._sliding_window_pattern
            case _:
                assert getattr(default, name) == value, name


def test_windows_alternate_or_are_listed():
    def windows(config):
        return [config.attention_spec(layer).window for layer in range(config.num_hidden_layers)]

    seven = {**SIZES, "num_hidden_layers": 7}
    assert windows(Gemma2Config(**seven)) == [4, None, 4, None, 4, None, 4]
    assert windows(Gemma3TextConfig(**seven)) == [4, 4, 4, 4, 4, None, 4]
    assert windows(Gemma3TextConfig(**seven, sliding_window_pattern=3)) == [4, 4, None] * 2 + [4]
    listed = Gemma2Config(**SIZES, layer_types=(FULL, FULL, SLIDING))
    assert windows(listed) == [None, None, 4]


def test_a_file_of_gemma_3_is_read_in_both_spellings():
    old = {
        "rope_theta": 1000000,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 6,
        "attn_logit_softcapping": None,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106 - 10],
    }
    new = {
        "rope_parameters": {
            FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
        },
        "_sliding_window_pattern": 6,
        "use_bidirectional_attention": None,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    configs = [
        config_from_dict({"model_type": "gemma3_text", **SIZES, **say}) for say in (old, new)
    ]
    assert configs[0] == configs[1]
    assert configs[0].rope_scaling.factor == 8.0
    assert configs[0] == config_from_dict({"model_type": "gemma3", **SIZES, **old})
    assert configs[0] == config_from_dict(configs[0].model_dump())


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("gemma2", {"use_bidirectional_attention": True},
         "use_bidirectional_attention: only False can be honoured, got True"),
        ("gemma3_text", {"use_bidirectional_attention": True},
         "use_bidirectional_attention: only False can be honoured, got True"),
        ("gemma2", {"hidden_activation": "silu"},
         "hidden_activation: only 'gelu_pytorch_tanh' can be honoured, got 'silu'"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0},
         "attn_logit_softcapping: only None can be honoured, got 50.0"),
        ("gemma2", {"attention_dropout": 0.1}, "attention_dropout: only 0.0 can be honoured"),
        ("gemma2", {"sliding_window": None}, "sliding_window: needed in layer 0, which has a wind"),
        ("gemma2", {"layer_types": [FULL]}, "layer_types: must have one entry for each of num_hi"),
        ("gemma2", {"rope_local_base_freq": 1.0}, "rope_local_base_freq: unknown field, got 1.0"),
        ("gemma3", {"vision_config": {"hidden_size": 3}},
         "vision_config: a model of images and text cannot be built"),
        ("gemma3", {"text_config": {"hidden_size": 3}},
         "text_config: a model of images and text cannot be built"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
         "rope_parameters: must have a table for each of 'full_attention' and 'sliding_attention'"),
        ("gemma3_text", {"rope_parameters": {SLIDING: SCALED}},
         "rope_parameters.sliding_attention: only rope_type 'default' with a rope_theta can be"),
        ("gemma3_text", {"rope_parameters": {SLIDING: {"rope_theta": 5.0}},
                         "rope_local_base_freq": 6.0},
         "rope_local_base_freq: contradicts rope_parameters.sliding_attention.rope_theta, got 6.0"),
    ],
)  # fmt: skip
def test_error_names_field_value_and_remedy(model_type, fields, message):
    with pytest.raises(ValueError) as caught:
        config_from_dict({"model_type": model_type, **SIZES, **fields})
    assert str(caught.value).startswith(message)
