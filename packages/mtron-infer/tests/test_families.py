"""Models of every family: checkpoints of transformers, converted, and what cannot generate."""

import pytest
import torch
import transformers

from mtron_ckpt import convert
from mtron_infer import Engine, EngineConfig, SamplingParams, load
from mtron_infer.cache import CacheBatch, KVCache, attach
from mtron_infer.scheduler import Chunk
from mtron_infer.support import check_generates
from mtron_models import Context, build, config_from_dict, initialize

PLAIN = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
HEAD = {"head_dim": 10}
WINDOW = {"sliding_window": 5}
GEMMA = {**PLAIN, **HEAD, **WINDOW, "query_pre_attn_scalar": 1}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENTS = {"q_lora_rank": 12, "kv_lora_rank": 20, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6}
GROUPS = {"n_routed_experts": 6, "n_group": 3, "topk_group": 2, "num_experts_per_tok": 3}
FAMILIES = {
    "Mistral": {**PLAIN, **WINDOW},
    "Qwen2": {**PLAIN, **WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "Qwen3": {**PLAIN, **HEAD},
    "GPT2": {"vocab_size": 300, "n_embd": 36, "n_layer": 3, "n_head": 3, "n_positions": 64,
             "initializer_range": 0.1, "bos_token_id": 0, "eos_token_id": 0},
    "Gemma2": {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "Gemma3": GEMMA,
    "Mixtral": {**PLAIN, **WINDOW, "num_local_experts": 5, "num_experts_per_tok": 2},
    "Qwen3Moe": {**PLAIN, **HEAD, **EXPERTS, "mlp_only_layers": [1]},
    "DeepseekV3": {**PLAIN, **LATENTS, **GROUPS, "num_key_value_heads": 4, "v_head_dim": 14,
                   "moe_intermediate_size": 24, "first_k_dense_replace": 1},
}  # fmt: skip
TEXT_ONLY = {"Gemma3": "Gemma3Text"}
CLASSES = {"GPT2": "GPT2LMHeadModel"}


@pytest.fixture(params=FAMILIES)
def theirs(request):
    """A model of transformers with random weights, in float64."""
    name = request.param
    config = getattr(transformers, f"{TEXT_ONLY.get(name, name)}Config")(**FAMILIES[name])
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(3)
    return getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config).double().eval()


def test_greedy_tokens_of_a_converted_checkpoint(theirs, tokenizer_files, tolerances, tmp_path):
    theirs.save_pretrained(tmp_path / "hf")
    for name, content in tokenizer_files.items():
        (tmp_path / "hf" / name).write_bytes(content)
    convert(tmp_path / "hf", tmp_path / "mtron", to="mtron")
    loaded = load(tmp_path / "mtron")
    engine = Engine(loaded.model, loaded.tokenizer, EngineConfig(max_batch_tokens=16))

    generator = torch.Generator().manual_seed(11)
    prompts = [torch.randint(1, 300, (n,), generator=generator).tolist() for n in (1, 9, 34)]
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=0)
    for prompt, completion in zip(prompts, engine.generate(prompts, params), strict=True):
        (choice,) = completion.choices
        with torch.inference_mode():
            logits = theirs(torch.tensor([prompt + completion.token_ids])).logits[0]
        expected = logits[len(prompt) - 1 : -1].double().log_softmax(-1).max(dim=-1)
        assert completion.token_ids == expected.indices.tolist()
        logprobs = torch.tensor([token.logprob for token in choice.tokens], dtype=torch.float64)
        torch.testing.assert_close(logprobs, expected.values, **tolerances.AGAINST_OTHERS)


@torch.inference_mode()
def test_latent_attention_keeps_one_short_vector_of_a_token():
    config = config_from_dict({"model_type": "deepseek_v3", **FAMILIES["DeepseekV3"]})
    model = build(config, device="cpu")
    initialize(model, seed=0)
    attach(model.eval())
    cache = KVCache(num_slots=1, max_len=8)
    batch = CacheBatch(cache, [Chunk(0, 0, 0, 5, True)], torch.device("cpu"))
    model(torch.arange(5)[None], Context(positions=batch.positions[None], caches=batch))
    kept_per_layer = LATENTS["kv_lora_rank"] + LATENTS["qk_rope_head_dim"]
    assert cache.numbers_per_token == 3 * kept_per_layer


ENCODERS = {
    "bert": {"num_attention_heads": 2, "hidden_size": 16, "num_hidden_layers": 1},
    "t5": {"num_heads": 2, "d_model": 16, "num_layers": 1},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_are_refused_when_they_are_loaded(
    name, model, tokenizer, tokenizer_files, write_checkpoint, tmp_path
):
    stored = {"model_type": name, "vocab_size": 300, **ENCODERS[name]}
    write_checkpoint(tmp_path, model, tokenizer_files, config={"model": stored})
    message = f"model_type: '{name}' does not continue texts, .* see later ones in .*layers.0"
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    with pytest.raises(ValueError, match=message):
        Engine(build(config_from_dict(stored)), tokenizer)


def test_angles_that_change_as_a_sequence_grows_are_refused(make_model, tokenizer):
    scaling = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32}
    values = make_model().config.model_dump() | {"rope_scaling": scaling}
    model = build(config_from_dict(values), device="cpu")
    with pytest.raises(ValueError, match=r"max_len: beyond 32 .*'dynamic'.* got 64; use at most"):
        Engine(model, tokenizer)
    assert Engine(model, tokenizer, EngineConfig(max_len=32)).max_len == 32


def test_experts_that_turn_tokens_away_are_refused():
    values = FAMILIES["Mixtral"] | {"model_type": "mixtral", "expert_capacity_factor": 1.5}
    with pytest.raises(ValueError, match=r"capacity: experts of layers.0.mlp.* each other's"):
        check_generates(build(config_from_dict(values)))
