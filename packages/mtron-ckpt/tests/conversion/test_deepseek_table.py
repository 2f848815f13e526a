import pytest

from mtron_ckpt.conversion.families import FAMILIES

FAMILY = FAMILIES["deepseek_v3"]
SIZES = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
}


def read(**changes):
    return FAMILY.from_hf(SIZES | changes, [])


def test_what_config_json_leaves_out_is_as_in_transformers():
    config = pytest.importorskip("transformers").DeepseekV3Config(**SIZES, num_key_value_heads=5)
    theirs = config.to_dict()
    model = read()
    given = {name: theirs[name] for name in model if name in theirs and name != "model_type"}
    further = given.pop("num_nextn_predict_layers")
    assert given == {name: model[name] for name in given}
    # Their default promises a layer that files without the key do not hold.
    assert (further, model["num_nextn_predict_layers"]) == (1, 0)


def test_published_keys_are_understood():
    published = {
        "ep_size": 1, "moe_layer_freq": 1, "scoring_func": "sigmoid", "seq_aux": True,
        "topk_method": "noaux_tc", "aux_loss_alpha": 0.001,
    }  # fmt: skip
    notes = []
    model = FAMILY.from_hf(SIZES | published, notes)
    assert model == read() | {"aux_loss_alpha": 0.001}
    assert not notes
    assert FAMILY.to_hf(model)["aux_loss_alpha"] == 0.001
    assert "aux_loss_alpha" not in FAMILY.to_hf(read())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: quantized"),
        ({"topk_method": "greedy"}, "topk_method: only 'noaux_tc' can be honoured, got 'greedy'"),
        ({"scoring_func": "softmax"}, "scoring_func: only 'sigmoid' can be honoured"),
        ({"qk_head_dim": 128}, "qk_head_dim: only 192 can be honoured, got 128"),
        ({"num_key_value_heads": 1}, "num_key_value_heads: .* num_attention_heads = 5 .* got 1"),
        ({"head_dim": 32}, "head_dim: must be qk_rope_head_dim = 64 and even, got 32"),
        ({"n_group": 7}, "n_group: must divide n_routed_experts = 256, got 7"),
        ({"aux_loss_alpha": -0.1}, "aux_loss_alpha: must be at least 0, got -0.1"),
        ({"hidden_act": "gelu"}, "hidden_act: only 'silu' can be honoured"),
    ],
)
def test_what_cannot_be_honoured_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        read(**changes)


def test_further_layers_follow_the_last_one_there():
    model = read(num_nextn_predict_layers=2, n_routed_experts=8, n_group=2)
    names = FAMILY.tensors(model, 1000)
    assert names.theirs_of("mtp.layers.1.eh_proj.weight") == ["model.layers.4.eh_proj.weight"]
    assert names.theirs_of("mtp.layers.0.block.mlp.experts.up_proj") == [
        f"model.layers.3.mlp.experts.{index}.up_proj.weight" for index in range(8)
    ]
    assert FAMILY.copies(model) == {
        f"model.layers.{layer}.{name}": original
        for name, original in (
            ("embed_tokens.weight", "model.embed_tokens.weight"),
            ("shared_head.head.weight", "lm_head.weight"),
        )
        for layer in (3, 4)
    }
