import copy

import pytest
import torch

from mtron_models import (
    Context,
    RandomKey,
    Replicate,
    Shard,
    build,
    initial_values,
    initialize,
    key_of,
)
from mtron_models.adapters import (
    LoraConfig,
    LoraLinear,
    adapter_parameters,
    add_lora,
    lora_config_from_dict,
    merge_lora,
    remove_lora,
    unmerge_lora,
)

CONFIG = LoraConfig(target_modules=("q_proj", "self_attn.o_proj", "mlp.*_proj"), r=3, lora_alpha=5)
LINEARS = (
    "self_attn.q_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
NAMES = [f"layers.{layer}.{name}" for layer in range(3) for name in LINEARS]


@torch.no_grad()
def disturb(model, scale=0.3):
    """Give B values, so that the adapters matter."""
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter_parameters(model).values():
        noise = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
        parameter.add_(scale * noise)


def adapted(make_model, config=CONFIG, **fields):
    model = make_model(torch.float64, **fields)
    add_lora(model, config, seed=4)
    disturb(model)
    return model


def products(model):
    """What each adapter adds to the weight beside it."""
    tensors = dict(model.named_parameters())
    names = [n.removesuffix(".lora_A.weight") for n in tensors if n.endswith("lora_A.weight")]
    return {
        name: tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] for name in names
    }


def test_an_adapter_adds_its_product_to_the_weight(make_model, tokens, tolerances):
    model, plain = adapted(make_model), make_model(torch.float64)
    added = products(model)
    assert sorted(added) == sorted(NAMES)
    with torch.no_grad():
        for name, product in added.items():
            plain.get_submodule(name).weight.add_(product * 5 / 3)
    inputs, _ = tokens(2, 9)
    close = {"rtol": tolerances.FP64_OP, "atol": 1e2 * tolerances.FP64_OP}
    torch.testing.assert_close(model(inputs), plain(inputs), **close)


def test_every_linear_layer_of_every_family_can_be_adapted(
    plain_decoder, family_model, tokens, tolerances
):
    """In some family a weight might be used without a call of its layer."""
    model, plain = family_model(plain_decoder), family_model(plain_decoder)
    add_lora(model.eval(), LoraConfig(target_modules="all-linear", r=2, lora_alpha=1))
    inputs, _ = tokens(2, 9)
    begun = model(inputs)
    assert torch.equal(begun, plain.eval()(inputs))
    disturb(model, 0.1)
    adapted, names = model(inputs), set(adapter_parameters(model))
    assert (adapted - begun).abs().max() > 1e-3
    merge_lora(model)
    close = {"rtol": tolerances.FP64_OP, "atol": 1e2 * tolerances.FP64_OP}
    torch.testing.assert_close(model(inputs), adapted, **close)
    table = model.layout()
    assert {name for name in table if "lora_" in name} == names


def test_adapters_begin_without_effect(make_model, tokens):
    model, plain = make_model(), make_model()
    add_lora(model, CONFIG)
    inputs, _ = tokens(2, 9)
    assert torch.equal(model(inputs), plain(inputs))


def test_only_adapters_are_trained(make_model, tokens):
    model = adapted(make_model)
    inputs, labels = tokens(2, 9)
    model.train_loss(inputs, labels, torch.ones(2, 9) / 18).backward()
    parts = {f"{name}.lora_{part}.weight" for name in NAMES for part in "AB"}
    assert set(adapter_parameters(model)) == parts
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in parts), name
        assert parameter.grad is None or parameter.grad.norm() > 0


def test_names_and_values_of_the_model_stay(make_model):
    model, plain = make_model(), make_model()
    add_lora(model, CONFIG)
    found = model.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(found.pop(name), value)
    assert sorted(found) == sorted(f"{name}.lora_{part}.weight" for name in NAMES for part in "AB")


def test_initial_values_are_keyed(make_config, make_model):
    """They are those of a model that gets adapters before it has values, and of any part."""
    first = build(make_config())
    add_lora(first, CONFIG)
    draw = initial_values(first, seed=4)
    first.to_empty(device="cpu")
    initialize(first, seed=4)
    second = make_model(seed=4)
    add_lora(second, CONFIG, seed=4)
    expected = dict(first.named_parameters())
    for name, parameter in adapter_parameters(second).items():
        assert torch.equal(parameter, expected[name])
        assert torch.equal(parameter[1:, 2:], draw(name, (1, 2), parameter[1:, 2:].shape))
        assert bool((parameter == 0).all()) == ("lora_B" in name)
    wide = torch.cat([p.flatten() for n, p in expected.items() if "up_proj.lora_A" in n])
    bound = 48**-0.5  # PEFT draws uniformly between these
    assert wide.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not torch.equal(*(expected[f"layers.{i}.mlp.up_proj.lora_A.weight"] for i in (0, 1)))


def test_merging_and_back(make_model, tokens, tolerances):
    model = adapted(make_model)
    inputs, _ = tokens(2, 9)
    before, weights = model(inputs), copy.deepcopy(model.state_dict())
    merge_lora(model)
    close = {"rtol": tolerances.FP64_OP, "atol": 1e2 * tolerances.FP64_OP}
    torch.testing.assert_close(model(inputs), before, **close)
    assert not torch.equal(
        model.layers["0"].mlp.up_proj.weight, weights["layers.0.mlp.up_proj.weight"]
    )
    with pytest.raises(ValueError, match=r"the adapter of layers\.0\.\S+ is merged already"):
        merge_lora(model)
    unmerge_lora(model)
    torch.testing.assert_close(model.state_dict(), weights, **close)
    with pytest.raises(ValueError, match="is not merged"):
        unmerge_lora(model)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_removing_leaves_a_plain_model(make_model, tokens, tolerances, dropout):
    model, plain = make_model(torch.float64), make_model(torch.float64)
    add_lora(model, CONFIG.model_copy(update={"lora_dropout": dropout}))
    disturb(model)
    inputs, _ = tokens(2, 9)
    merge_lora(model)
    merged = model(inputs)
    remove_lora(model)
    assert torch.equal(model(inputs), merged)
    assert [str(module) for module in model.modules()] == [str(m) for m in plain.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.layout() == plain.layout()
    assert model.init_rules() == plain.init_rules()
    assert not any(m._forward_pre_hooks for m in model.modules())
    with pytest.raises(ValueError, match="has no adapters; call add_lora first"):
        remove_lora(model)
    add_lora(model, CONFIG)


def test_rank_stabilized_scaling():
    assert LoraConfig(target_modules=("a",), r=16, lora_alpha=8).scaling == 0.5
    assert LoraConfig(target_modules=("a",), r=16, lora_alpha=8, use_rslora=True).scaling == 2


def test_modules_to_save_are_trained_whole(make_model):
    config = LoraConfig(target_modules=("q_proj",), modules_to_save=("head", "input_layernorm"))
    model = make_model()
    add_lora(model, config)
    whole = {n for n in adapter_parameters(model) if "lora_" not in n}
    assert whole == {"head.weight", *(f"layers.{i}.input_layernorm.weight" for i in range(3))}


def test_all_linear_layers_but_the_head(make_model):
    model = make_model()
    add_lora(model, LoraConfig(target_modules="all-linear", exclude_modules=("layers.1.*",)))
    found = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    assert len(found) == 14
    assert not any(name == "head" or name.startswith("layers.1.") for name in found)


def test_layout_follows_from_that_of_the_layers(make_model):
    model = make_model(attention_bias=True)
    config = LoraConfig(target_modules=("[qko]_proj", "head"))
    plain = model.layout()
    add_lora(model, config)
    table = model.layout()
    assert {name: rule for name, rule in table.items() if "lora" not in name} == plain
    part = Replicate(heads=True)
    heads = {"q": "num_attention_heads", "k": "num_key_value_heads", "o": "num_attention_heads"}
    for layer in range(3):
        for name, of in heads.items():
            first, second = (
                table[f"layers.{layer}.self_attn.{name}_proj.lora_{half}.weight"] for half in "AB"
            )
            cut = Shard(int(name == "o"), unit=8, replicate_if_fewer=name == "k", of=of)
            assert (first, second) == ((cut, part) if name == "o" else (part, cut))
    assert table["head.lora_A.weight"] == part
    assert table["head.lora_B.weight"] == Shard(0, pad=True, of="vocab_size")
    assert all(p.shape for name, p in model.named_parameters() if name in table)


def dropped_loss(model, inputs, labels, ids, rows, **random):
    context = Context(random=RandomKey(2, 3, ids[rows], **random))
    weights = torch.full(inputs[rows].shape, 1 / inputs.numel(), dtype=torch.float64)
    return model.train_loss(inputs[rows], labels[rows], weights, context)


def test_dropout_is_on_the_input_of_a(make_model):
    config = LoraConfig(target_modules=("q_proj",), lora_dropout=0.5)
    model = adapted(make_model, config)
    linear = model.layers["1"].self_attn.q_proj
    assert linear.lora_dropout.site == key_of("dropout/layers.1.self_attn.q_proj.lora_dropout")
    x = torch.randn(2, 5, 48, dtype=torch.float64)
    linear.context = context = Context(random=RandomKey(0, 1, torch.tensor([4, 9])))
    expected = torch.nn.functional.linear(x, linear.weight)
    low = linear.lora_A(linear.lora_dropout(x, context))
    assert torch.equal(linear(x), expected + linear.lora_B(low) * linear.scaling)
    assert not torch.equal(linear.lora_dropout(x, context), x)


@pytest.mark.parametrize("copied", [False, True])
def test_dropout_does_not_depend_on_the_split_of_the_batch(make_model, tokens, copied):
    model = adapted(make_model, CONFIG.model_copy(update={"lora_dropout": 0.4}))
    if copied:
        whole = model
        model = copy.deepcopy(model)
        del whole
    inputs, labels = tokens(4, 9)
    ids = torch.tensor([12, 5, 7, 2**40])

    def loss(rows):
        return dropped_loss(model, inputs, labels, ids, rows)

    whole, parts = loss(slice(None)), loss([3, 0]) + loss([1]) + loss([2])
    assert parts.item() == pytest.approx(whole.item(), rel=1e-13)
    model.eval()
    assert loss(slice(None)).item() != pytest.approx(whole.item(), rel=1e-6)


def test_dropout_of_a_part_of_the_tokens_is_refused(make_model, tokens):
    model = adapted(make_model, CONFIG.model_copy(update={"lora_dropout": 0.4}))
    inputs, labels = tokens(2, 9)
    with pytest.raises(ValueError, match=r"lora_dropout: layers\.0\.self_attn\.q_proj gets other"):
        dropped_loss(model, inputs, labels, torch.arange(2), [0, 1], token_index=torch.arange(4))
    linear = model.layers["0"].mlp.down_proj
    linear.weight = torch.nn.Parameter(linear.weight[:, :36])
    with pytest.raises(ValueError, match=r"got an input of \[2, 9, 36\]; use 0"):
        linear(torch.ones(2, 9, 36, dtype=torch.float64))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ("q_prj",)}, "fits no module, got 'q_prj'; did you mean 'q_proj'"),
        ({"target_modules": ("zzzzz",)}, "fits no module, got 'zzzzz'; there are "),
        (
            {"target_modules": ("embed",)},
            "only plain nn.Linear .* got embed, which is",
        ),
        ({"target_modules": ("*norm",)}, "got layers.0.input_layernorm, which is of RMSNorm"),
        (
            {"target_modules": ("q_proj",), "exclude_modules": ("q_proj",)},
            "no linear module is left",
        ),
        (
            {"target_modules": ("q_proj",), "exclude_modules": ("k_proj",)},
            "exclude_modules: fits no",
        ),
        ({"target_modules": ("q_proj",), "modules_to_save": ("hat",)}, "modules_to_save: fits no"),
        (
            {"target_modules": ("q_proj",), "modules_to_save": ("self_attn",)},
            r"layers\.0\.self_attn\.q_proj gets an adapter, got layers\.0\.self_attn",
        ),
        ({"target_modules": ("head",), "lora_dropout": 0.1}, "head is called without a context"),
    ],
)
def test_what_fits_no_module_is_refused(make_model, fields, message):
    with pytest.raises(ValueError, match=message):
        add_lora(make_model(), LoraConfig(**fields))


def test_a_tied_head_is_refused(make_model):
    for field in ("target_modules", "modules_to_save"):
        fields = {"target_modules": ("q_proj",), field: ("head",)}
        with pytest.raises(ValueError, match=f"{field}: head has the matrix of embed"):
            add_lora(make_model(tie_word_embeddings=True), LoraConfig(**fields))


def test_a_stack_of_experts_is_refused():
    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up_proj = torch.nn.Parameter(torch.empty(4, 3, 2))

    model = torch.nn.Module()
    model.experts, model.up_proj = Experts(), torch.nn.Linear(2, 3)
    model.layout, model.init_rules = dict, dict
    with pytest.raises(ValueError, match=r"experts\.up_proj is a stack of experts"):
        add_lora(model, LoraConfig(target_modules=("up_proj",)))


def test_what_is_attached_already_is_refused(make_model):
    model = make_model()
    model.layers["0"].self_attn.q_proj.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"attached to layers\.0\.self_attn\.q_proj already"):
        add_lora(model, CONFIG)
    model = make_model()
    add_lora(model, CONFIG)
    with pytest.raises(ValueError, match="has adapters already; call remove_lora first"):
        add_lora(model, LoraConfig(target_modules=("q_proj",)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_dora": True}, r"use_dora: .*\(DoRA\) are not built, got True; leave it out"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern: ranks that differ"),
        ({"r": 0}, "r: input should be greater than or equal to 1, got 0"),
        ({"lora_alpa": 4}, "lora_alpa: unknown field, got 4; did you mean lora_alpha"),
        ({"bias": "all"}, "bias: only 'none' is built, got 'all'"),
        ({"target_modules": []}, r"target_modules: must name a module, got \(\)"),
        ({"target_modules": "q_proj"}, "target_modules"),
    ],
)
def test_a_configuration_that_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        lora_config_from_dict({"target_modules": ["q_proj"], **values})


def test_a_configuration_from_and_to_a_dictionary():
    values = {"target_modules": ["q_proj"], "r": 4, "lora_alpha": 8, "use_dora": False}
    config = lora_config_from_dict(values)
    assert config == LoraConfig(target_modules=("q_proj",), r=4, lora_alpha=8.0)
    assert lora_config_from_dict(config.model_dump(mode="json")) == config
    assert lora_config_from_dict({"target_modules": "all-linear"}).target_modules == "all-linear"


# torch 2.13 uses deprecated parts of itself when its compiler is imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_compiles_without_a_graph_break(make_model, tokens, tolerances):
    model = make_model()
    add_lora(model, CONFIG.model_copy(update={"lora_dropout": 0.1}))
    disturb(model, 0.1)
    inputs, labels = tokens(2, 9)
    context = Context(random=RandomKey(0, torch.tensor(1), torch.arange(2)))
    weights = torch.ones(2, 9) / 18
    expected = model.train_loss(inputs, labels, weights, context)
    compiled = torch.compile(model.train_loss, fullgraph=True, backend="aot_eager")
    found = compiled(inputs, labels, weights, context)
    close = {"rtol": tolerances.FP32_COMPILED, "atol": tolerances.FP32_COMPILED}
    torch.testing.assert_close(found, expected, **close)
