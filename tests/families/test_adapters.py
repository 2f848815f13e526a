"""Adapters in the files of PEFT: equal logits, and every bit of the tensors."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import mtron_ckpt
from mtron_ckpt import LocalArray, Metadata, convert, convert_adapter
from mtron_ckpt.torch_io import from_torch, to_torch
from mtron_models import (
    adapter_parameters,
    add_lora,
    build,
    config_from_dict,
    lora_config_from_dict,
)

# PEFT uses deprecated names of transformers.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

LOGITS = 2e-5
VOCAB = 53

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama():
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config)


def tied_qwen2():
    config = transformers.Qwen2Config(**SIZES, num_key_value_heads=3, tie_word_embeddings=True)
    return transformers.Qwen2ForCausalLM(config)


def gemma2():
    config = transformers.Gemma2Config(**SIZES, num_key_value_heads=3, head_dim=8)
    config.query_pre_attn_scalar = 8
    return transformers.Gemma2ForCausalLM(config)


def mixtral():
    config = transformers.MixtralConfig(**SIZES, num_key_value_heads=3, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)


def deepseek_v3():
    config = transformers.DeepseekV3Config(
        **SIZES, num_key_value_heads=3, moe_intermediate_size=12, n_routed_experts=4,
        n_group=1, topk_group=1,
        num_experts_per_tok=2, q_lora_rank=10, kv_lora_rank=12, qk_nope_head_dim=8,
        qk_rope_head_dim=4, v_head_dim=8, first_k_dense_replace=1,
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config)


def t5():
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=24, d_kv=6, d_ff=30, num_layers=2, num_heads=3,
        decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=24, n_layer=2, n_head=3, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def bert():
    config = transformers.BertConfig(
        **{k: v for k, v in SIZES.items() if not k.endswith("token_id")}, hidden_act="gelu"
    )
    return transformers.BertForMaskedLM(config)


CASES = {
    "llama": (llama, ["q_proj", "v_proj", "down_proj"], ["lm_head"], {}),
    "llama, some layers": (llama, ["q_proj"], None, {"layers_to_transform": [1]}),
    "llama, scaled by the root": (llama, "all-linear", ["norm"], {"use_rslora": True}),
    "tied qwen2": (tied_qwen2, ["k_proj", "gate_proj"], None, {}),
    "gemma2": (gemma2, ["o_proj", "up_proj"], ["pre_feedforward_layernorm"], {}),
    "mixtral": (mixtral, ["q_proj", "v_proj"], None, {}),
    "deepseek_v3": (deepseek_v3, ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa"], None, {}),
    "t5": (t5, ["q", "wo", "EncDecAttention.v"], None, {}),
    "gpt2": (gpt2, ["mlp.c_proj"], ["c_fc"], {"fan_in_fan_out": True}),
    "bert": (bert, ["query", "output.dense"], None, {}),
}


def randomized(model, seed):
    """Give a model weights of order one, adapters included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dict.fromkeys(model.parameters()):
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_((parameter.dim() == 1) + 0.2 * drawn)
    return model.eval()


def ours_with_adapter(base_root, adapter_root):
    """Build the model, load its weights, add the adapters, load theirs."""
    base, adapter = mtron_ckpt.open(base_root), mtron_ckpt.open(adapter_root)
    assert adapter.config["model"] == base.config["model"]
    model = build(config_from_dict(base.config["model"]), device="cpu").eval()
    add_lora(model, lora_config_from_dict(adapter.config["adapter"]))
    trained = set(adapter_parameters(model))
    assert {f"param/{name}" for name in trained} == set(adapter.names())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            source = adapter if name in trained else base
            parameter.copy_(to_torch(source.read(f"param/{name}")))
    return model


def save_adapter(root, model, config):
    """Save what is trained of a model of ours."""
    arrays = {
        f"param/{name}": LocalArray.whole(from_torch(parameter.detach()))
        for name, parameter in adapter_parameters(model).items()
    }
    mtron_ckpt.save(root, arrays, Metadata(step=5, config=config)).wait()


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """A model of theirs in both formats, its adapter as PEFT saves it, and its logits."""
    make, targets, saved, options = CASES[request.param]
    plain = randomized(make(), seed=1)
    plain.save_pretrained(tmp_path / "hf")
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, modules_to_save=saved, **options
    )
    adapted = peft.get_peft_model(plain, config)
    own = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in own.values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    adapted.eval().save_pretrained(tmp_path / "peft")
    tokens = torch.randint(VOCAB, (2, 9), generator=generator)
    with torch.no_grad():
        logits = their_logits(adapted, tokens)
        assert (logits - their_logits(make_plain(make, tmp_path), tokens)).abs().max() > 0.1
    convert(tmp_path / "hf", tmp_path / "base", to="mtron")
    return make, tokens, logits


def make_plain(make, tmp_path):
    return type(make()).from_pretrained(tmp_path / "hf").eval()


def their_logits(model, tokens):
    """Logits of a model of theirs; the second sequence, where there is one, is turned around."""
    two = {"decoder_input_ids": tokens.flip(1)} if model.config.is_encoder_decoder else {}
    return model(input_ids=tokens, **two).logits


def our_logits(model, tokens):
    two = (tokens.flip(1),) if model.config.model_type == "t5" else ()
    return model(tokens, *two)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=LOGITS)


def test_adapters_of_peft_load_here_and_return(case, tmp_path):
    make, tokens, logits = case
    convert_adapter(tmp_path / "peft", tmp_path / "mtron", to="mtron", base=tmp_path / "base")
    ours = ours_with_adapter(tmp_path / "base", tmp_path / "mtron")
    with torch.no_grad():
        close(our_logits(ours, tokens), logits)
    convert_adapter(tmp_path / "mtron", tmp_path / "back", to="peft")
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("peft", "back")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())
    with torch.no_grad():
        loaded = peft.PeftModel.from_pretrained(make_plain(make, tmp_path), tmp_path / "back")
        close(their_logits(loaded.eval(), tokens), logits)


def test_adapters_of_ours_load_in_peft(tmp_path):
    randomized(llama(), seed=1).save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "base", to="mtron")
    base = mtron_ckpt.open(tmp_path / "base")
    model = build(config_from_dict(base.config["model"]), device="cpu").eval()
    adapter = {"r": 4, "lora_alpha": 3.5, "target_modules": ["layers.1.*_proj", "o_proj"]}
    add_lora(model, lora_config_from_dict(adapter))
    randomized(model, seed=3)
    with torch.no_grad():
        trained = adapter_parameters(model)
        for name, parameter in model.named_parameters():
            if name not in trained:
                parameter.copy_(to_torch(base.read(f"param/{name}")))
    save_adapter(tmp_path / "mtron", model, {"model": base.config["model"], "adapter": adapter})
    report = convert_adapter(tmp_path / "mtron", tmp_path / "peft")
    assert (report.model_type, report.num_tensors) == ("llama", len(trained))
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["lora_alpha"], config["r"]) == (3.5, 4)
    assert "o_proj" in config["target_modules"]
    assert "model.layers.1.mlp.up_proj" in config["target_modules"]
    tokens = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(4))
    loaded = peft.PeftModel.from_pretrained(make_plain(llama, tmp_path), tmp_path / "peft")
    with torch.no_grad():
        close(their_logits(loaded.eval(), tokens), model(tokens))
