"""Llama, Mistral, Qwen 2 and Qwen 3 against `transformers`: one test per way to configure them."""

import pytest
import transformers

SMALL = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LONG = {"original_max_position_embeddings": 8, "rope_theta": 1000.0}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 3.0}
YARN = {"rope_type": "yarn", "factor": 8.0, **LONG}
DEEPSEEK_YARN = YARN | {"mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 8.0, "beta_slow": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SLIDING = {"use_sliding_window": True, "sliding_window": 5}

CASES = {
    "llama: three heads, tied": ("Llama", {
        "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama: biases, free head_dim": ("Llama", {
        "attention_bias": True, "mlp_bias": True, "head_dim": 10, "rms_norm_eps": 1e-4}),
    "llama: linear": ("Llama", {"rope_parameters": LINEAR, "mlp_bias": True}),
    "llama: dynamic": ("Llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 12}),
    "llama: yarn": ("Llama", {"rope_parameters": YARN, "attention_bias": True}),
    "llama: llama3": ("Llama", {"rope_parameters": LLAMA3 | LONG}),
    "mistral: window": ("Mistral", {"sliding_window": 7, "num_key_value_heads": 3}),
    "mistral: no window, tied": ("Mistral", {
        "sliding_window": None, "tie_word_embeddings": True, "head_dim": 6}),
    "qwen2: plain, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2: windows from a layer on": ("Qwen2", {**SLIDING, "max_window_layers": 1}),
    "qwen2: yarn, no window": ("Qwen2", {"rope_parameters": DEEPSEEK_YARN}),
    "qwen3: plain": ("Qwen3", {"head_dim": 10}),
    "qwen3: biases, windows by type": ("Qwen3", {
        **SLIDING, "head_dim": 6, "attention_bias": True, "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": LINEAR}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_that_of_transformers(case, check_family, tokens):
    name, changes = CASES[case]
    config = getattr(transformers, f"{name}Config")(**SMALL | changes)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    check_family(model, tokens(2, 19, SMALL["vocab_size"]))
