import json

import pytest
import torch
from transformers import DeepseekV3Config as HuggingFaceConfig
from transformers import DeepseekV3ForCausalLM

from mtron_models import config_from_dict, num_active_parameters, num_parameters

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
PUBLISHED = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}


def test_the_published_model_has_its_published_size():
    config = config_from_dict({**PUBLISHED, "num_nextn_predict_layers": 0})
    assert num_parameters(config) == 671_026_419_200  # with the correction biases
    assert num_active_parameters(config) == 37_552_297_472
    with_further = config_from_dict(PUBLISHED)
    assert 11.6e9 < num_parameters(with_further) - num_parameters(config) < 11.7e9
    assert num_active_parameters(with_further) == num_active_parameters(config)
    with torch.device("meta"):
        theirs = DeepseekV3ForCausalLM(HuggingFaceConfig(**PUBLISHED))
    counted = sum(p.numel() for p in (*theirs.parameters(), *biases(theirs)))
    assert counted == num_parameters(config)


def biases(model):
    """The correction biases, which `transformers` keeps as buffers."""
    return [b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")]


def test_config_json_of_transformers_is_understood(family_config):
    config = family_config("deepseek_v3", rope_parameters=YARN, num_nextn_predict_layers=1)
    values = config.model_dump(exclude={"rope_theta", "rope_scaling"})
    theirs = HuggingFaceConfig(**values, rope_parameters=YARN)
    written = json.loads(theirs.to_json_string())
    assert written["qk_head_dim"] == 20
    assert config_from_dict(written) == config
    assert config.head_dim == config.qk_rope_head_dim == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: .*quantized"),
        ({"scoring_func": "softmax"}, "scoring_func: only 'sigmoid' can be honoured"),
        ({"topk_method": "greedy"}, "topk_method: only 'noaux_tc' can be honoured"),
        ({"moe_layer_freq": 2}, "moe_layer_freq: only 1 can be honoured"),
        (
            {"num_key_value_heads": 1},
            "num_key_value_heads: .* num_attention_heads = 5 heads, got 1",
        ),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim: must be even .* got 7; use 8"),
        ({"head_dim": 6}, "head_dim: is another name of qk_rope_head_dim = 8 .* got 6"),
        ({"qk_head_dim": 6}, r"qk_head_dim: contradicts qk_nope_head_dim \+ .* = 20, got 6"),
        ({"n_group": 5}, "n_group: does not divide n_routed_experts = 12, got 5; use one of 1, 2"),
        ({"n_group": 12}, "n_group: .* only one of n_routed_experts = 12, got 12; use at most 6"),
        ({"topk_group": 4}, "topk_group: is more than n_group = 3, got 4"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok: is more than the 8 experts of topk_"),
        ({"n_routed_expert": 12}, "n_routed_expert: unknown field, got 12; did you mean n_rou"),
    ],
)
def test_what_cannot_be_honoured_is_refused(fields, message, family_config):
    with pytest.raises(ValueError, match=message):
        family_config("deepseek_v3", **fields)
