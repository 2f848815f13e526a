import pytest
import torch

from mtron_models import LlamaConfig, MixtralConfig, Qwen3MoeConfig, build, initialize, upcycle

SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "initializer_range": 0.3,
}


@pytest.fixture
def dense():
    model = build(LlamaConfig(**SIZES, intermediate_size=24), device="cpu", dtype=torch.float64)
    initialize(model, 0)
    return model


def mixture(width, **fields):
    return MixtralConfig(**SIZES, intermediate_size=width, **fields)


def upcycled(dense, config, seed=1):
    model = build(config, device="cpu", dtype=torch.float64)
    draw = upcycle(dense.state_dict(), config, seed)
    values = {name: draw(name, (0,) * p.dim(), p.shape) for name, p in model.named_parameters()}
    model.load_state_dict(values)
    return model


@pytest.mark.parametrize(
    ("width", "experts", "chosen"), [(24, 4, 2), (24, 3, 1), (8, 6, 3), (12, 8, 4), (6, 8, 4)]
)
def test_the_mixture_computes_what_the_dense_model_computes(dense, width, experts, chosen):
    config = mixture(width, num_local_experts=experts, num_experts_per_tok=chosen)
    model = upcycled(dense, config)
    tokens = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(tokens), dense(tokens), rtol=0, atol=1e-10)
    router = model.layers["0"].mlp.router.weight
    parts = 24 // width
    assert torch.equal(router[0], router[parts - 1])
    assert not torch.equal(router[0], router[parts])


def test_weights_that_do_not_sum_to_one_are_made_up_for(dense):
    config = Qwen3MoeConfig(
        **SIZES, intermediate_size=24, moe_intermediate_size=8, num_experts=6,
        num_experts_per_tok=3,
    )  # fmt: skip
    norm = torch.ones(8, dtype=torch.float64)
    state = dense.state_dict()
    state |= {f"layers.{i}.self_attn.{n}_norm.weight": norm for i in (0, 1) for n in "qk"}
    draw = upcycle(state, config, 0)
    up = draw("layers.1.mlp.experts.up_proj", (4, 2, 3), (2, 5, 7))
    whole = state["layers.1.mlp.up_proj.weight"]
    factor = (6 * 3 / 3) ** 0.5  # experts * parts / chosen
    assert torch.equal(up[0], whole[10:15, 3:10] * factor)
    assert torch.equal(up[1], whole[18:23, 3:10] * factor)


def test_a_block_is_a_part_of_the_whole(dense):
    config = mixture(12, num_local_experts=4)
    draw = upcycle(dense.state_dict(), config, 0)
    for name, shape in config.parameter_shapes().items():
        whole = draw(name, (0,) * len(shape), shape)
        offset, size = [n // 3 for n in shape], [n // 2 for n in shape]
        block = tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))
        assert torch.equal(draw(name, offset, size), whole[block]), name


def test_what_does_not_fit_is_refused_by_name(dense):
    state = dense.state_dict()
    for config, problem in (
        (LlamaConfig(**SIZES, intermediate_size=24), "model_type: has no experts, got 'llama'"),
        (mixture(9), "8 experts of width 9 cannot be made of a dense layers.0.mlp.gate_proj"),
        (mixture(3, num_local_experts=6), "6 experts of width 3 cannot be made"),
    ):
        with pytest.raises(ValueError, match=problem):
            upcycle(state, config, 0)
    del state["norm.weight"]
    with pytest.raises(ValueError, match=r"norm\.weight: cannot be made, the dense"):
        upcycle(state, mixture(24), 0)
