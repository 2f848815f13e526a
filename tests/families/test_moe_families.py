"""Mixtral and Qwen3-MoE against `transformers`: one test per way to configure them."""

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
YARN = {"rope_type": "yarn", "factor": 8.0, "rope_theta": 1000.0,
        "original_max_position_embeddings": 8}  # fmt: skip
FINE = {"num_experts": 7, "moe_intermediate_size": 12, "num_experts_per_tok": 3}
"""Widths are multiples of 4: torch's grouped product, which theirs uses, takes no others."""

CASES = {
    "mixtral: window": ("Mixtral", {"sliding_window": 7, "num_local_experts": 5}),
    "mixtral: one of three experts, three heads, tied": ("Mixtral", {
        "num_local_experts": 3, "num_experts_per_tok": 1, "tie_word_embeddings": True,
        "num_attention_heads": 3, "num_key_value_heads": 1, "router_aux_loss_coef": 0.0}),
    "mixtral: all experts, free head_dim, yarn": ("Mixtral", {
        "num_local_experts": 4, "num_experts_per_tok": 4, "head_dim": 10,
        "rope_parameters": YARN}),
    "qwen3_moe: plain, tied": ("Qwen3Moe", {**FINE, "tie_word_embeddings": True}),
    "qwen3_moe: biases, weights that sum to 1, window": ("Qwen3Moe", {
        **FINE, "attention_bias": True, "norm_topk_prob": True, "use_sliding_window": True,
        "sliding_window": 5, "head_dim": 10}),
    "qwen3_moe: every second layer": ("Qwen3Moe", {
        **FINE, "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3],
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0}}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_that_of_transformers(case, check_family, tokens):
    name, changes = CASES[case]
    config = getattr(transformers, f"{name}Config")(**SMALL | changes)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    check_family(model, tokens(2, 19, SMALL["vocab_size"]))
