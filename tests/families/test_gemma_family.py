"""Gemma 2 and 3 against `transformers`: one test per way to configure them."""

import pytest
import transformers

SMALL = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "query_pre_attn_scalar": 5,
    "max_position_embeddings": 64,
    "sliding_window": 5,
    "pad_token_id": None,  # theirs never lets that token's embedding learn
}
FULL, SLIDING = "full_attention", "sliding_attention"
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8, "rope_theta": 1000.0,
}  # fmt: skip
LOCAL = {"rope_type": "default", "rope_theta": 50.0}

CASES = {
    "gemma2: tied": ("Gemma2", {}),
    "gemma2: tight bounds, untied": ("Gemma2", {
        "attn_logit_softcapping": 1.5, "final_logit_softcapping": 1.0,
        "tie_word_embeddings": False}),
    "gemma2: no bounds, three heads, biases": ("Gemma2", {
        "attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True,
        "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10}),
    "gemma2: linear, windows by type": ("Gemma2", {
        "rope_parameters": LINEAR, "layer_types": [FULL, SLIDING]}),
    "gemma3: windows alone": ("Gemma3", {"rms_norm_eps": 1e-4}),
    "gemma3: two bases, untied": ("Gemma3", {
        "layer_types": [SLIDING, FULL], "tie_word_embeddings": False,
        "rope_parameters": {FULL: LINEAR, SLIDING: LOCAL}}),
    "gemma3: llama3, biases, bound": ("Gemma3", {
        "layer_types": [FULL, SLIDING], "attention_bias": True, "final_logit_softcapping": 2.0,
        "rope_parameters": {FULL: LLAMA3, SLIDING: LOCAL}}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_that_of_transformers(case, check_family, tokens):
    name, changes = CASES[case]
    config_name = {"Gemma2": "Gemma2Config", "Gemma3": "Gemma3TextConfig"}[name]
    config = getattr(transformers, config_name)(**SMALL | changes)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    check_family(model, tokens(2, 19, SMALL["vocab_size"]))
