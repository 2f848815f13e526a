import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from mtron_models import (
    Context,
    Report,
    config_from_dict,
    num_active_parameters,
    num_parameters,
    ops,
)
from mtron_models.layers.moe import MoE
from mtron_models.moe_config import moe_flops, moe_shapes
from mtron_models.ops.experts import _by_grouped_products
from mtron_models.router_spec import Capacity, RouterSpec

HIDDEN, WIDTH, EXPERTS, CHOSEN = 8, 12, 6, 2


def mixture(dtype=torch.float64, shared_size=0, shared_gate=False, **fields):
    torch.manual_seed(0)
    spec = RouterSpec(EXPERTS, CHOSEN, **fields)
    layer = MoE(
        HIDDEN, WIDTH, spec, site="here", shared_size=shared_size, shared_gate=shared_gate
    ).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def hidden(batch=3, seq=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, seq, HIDDEN, dtype=dtype, generator=generator)


def by_hand(layer, x):
    """Every token by itself, through those experts that took it."""
    routing, _ = layer.router(x, Context())
    tokens, out = x.flatten(0, 1), []
    gate, up, down = layer.experts.parameters()
    columns = tokens[..., None]  # a matrix each, so that the operations of products are counted
    for token, experts, weights in zip(columns, routing.experts, routing.weights, strict=True):
        y = torch.zeros_like(token)
        for expert, weight in zip(experts.tolist(), weights, strict=True):
            if expert < EXPERTS:
                inner = F.silu(gate[expert] @ token) * (up[expert] @ token)
                y = y + weight * (down[expert] @ inner)
        out.append(y[:, 0])
    return torch.stack(out).view_as(x)


VARIANTS = {
    "dropless": {},
    "normalized": {"normalize": True},
    "dropping": {"capacity": Capacity(0.5)},
    "padded": {"capacity": Capacity(0.5, pad=True)},
    "padded, with room": {"capacity": Capacity(3.0, "position", pad=True)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients_are_those_of_each_token_by_itself(variant, tolerances):
    layer = mixture(**VARIANTS[variant])
    x, direction = hidden().requires_grad_(), torch.randn(3, 7, HIDDEN, dtype=torch.float64)
    inputs = [x, *layer.parameters()]
    y, expected = layer(x, Context()), by_hand(layer, x)
    limit = tolerances.FP64_OP * 10
    torch.testing.assert_close(y, expected, rtol=limit, atol=limit)
    found = torch.autograd.grad((y * direction).sum(), inputs)
    wanted = torch.autograd.grad((expected * direction).sum(), inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=limit, atol=limit)


def test_gradients_by_differences():
    layer = mixture(shared_size=5, shared_gate=True, scoring="sigmoid", scale=1.5)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, named, (x, Context()))

    inputs = [t.detach().clone().requires_grad_() for t in (hidden(1, 4), *layer.parameters())]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_an_expert_that_nobody_chooses_has_a_gradient_of_zero():
    layer = mixture()
    with torch.no_grad():
        layer.router.weight[:] = 0
        layer.router.weight[:2, 0] = torch.tensor([5.0, 4.0])
    x = hidden()
    x[..., 0] = 1.0
    layer(x, Context()).sum().backward()
    for stack in layer.experts.parameters():
        assert bool((stack.grad[:2] != 0).any())
        assert torch.equal(stack.grad[2:], torch.zeros_like(stack.grad[2:]))


def test_shared_experts_are_added():
    plain, shared = mixture(), mixture(shared_size=5, shared_gate=True)
    state = shared.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    x = hidden()
    gate = (x @ shared.shared_expert_gate.weight.T).sigmoid()
    expected = plain(x, Context()) + gate * shared.shared_expert(x)
    torch.testing.assert_close(shared(x, Context()), expected)


def test_no_rows_and_no_gradient():
    layer = mixture()
    assert layer(hidden()[:0], Context()).shape == (0, 7, HIDDEN)
    with torch.no_grad():
        quiet = layer(hidden(), Context())
    torch.testing.assert_close(quiet, layer(hidden(), Context()))


def test_the_kernels_of_a_gpu_compute_the_same(tolerances):
    if not hasattr(F, "grouped_mm"):
        pytest.skip("torch has no grouped product")
    torch.manual_seed(0)
    stacks = [torch.randn(4, 12, 8), torch.randn(4, 12, 8), torch.randn(4, 8, 12)]
    inputs = [torch.randn(6, 8), torch.rand(10), *stacks]
    token = torch.tensor([0, 1, 3, 0, 1, 2, 4, 3, 4, 0])
    counts, direction = torch.tensor([3, 0, 4, 1]), torch.randn(6, 8)
    results = []
    for op in (ops.expert_mlp, _by_grouped_products):
        x, weights, *leaves = [t.clone().requires_grad_() for t in inputs]
        y = op(x, token, weights, counts, *leaves)
        results.append([y, *torch.autograd.grad((y * direction).sum(), (x, weights, *leaves))])
        torch.full((5000,), torch.nan)  # what the next one finds where nothing is written
    limit = tolerances.FP32_OP * 10
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=limit, atol=limit)
    assert torch.equal(results[0][0][5], torch.zeros(8))
    assert torch.equal(results[0][2][8:], torch.zeros(2))


def test_sixteen_bits_are_near(tolerances):
    exact, rounded = mixture(normalize=True), mixture(normalize=True)
    for layer in (exact, rounded):
        for parameter in layer.parameters():
            parameter.data = parameter.data.mul_(0.3).to(torch.bfloat16).to(torch.float64)
    rounded = rounded.to(torch.bfloat16)
    x = hidden().to(torch.bfloat16)
    y = rounded(x, Context())
    assert y.dtype == torch.bfloat16
    expected = exact(x.double(), Context())
    assert (y - expected).norm() < tolerances.BF16_OP * expected.norm()


def gradients(layer, x, weight):
    layer.zero_grad()
    reports = []
    for part in x:
        reports.append(Report())
        context = Context(auxiliary_weight=weight, report=reports[-1])
        (layer(part, context) ** 2).sum().backward()
    counts = sum(report.values["here.router.counts"] for report in reports)
    return [p.grad.clone() for p in layer.parameters() if p.requires_grad], counts


@pytest.mark.parametrize("capacity", [None, Capacity(0.7)])
def test_micro_batches_give_the_gradients_of_the_batch(capacity, tolerances):
    layer = mixture(sequence_loss=1.0, batch_loss=0.5, z_loss=0.1, capacity=capacity)
    with torch.no_grad():
        layer.router.load.copy_(torch.rand(EXPERTS))
    x = hidden(4)
    whole, counts = gradients(layer, [x], 0.25)
    split, split_counts = gradients(layer, x.split(1), 0.25)
    assert torch.equal(counts, split_counts)
    for a, b in zip(whole, split, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerances.FP64_OP * 10, atol=1e-12)
    without, _ = gradients(layer, [x], None)
    assert not torch.allclose(without[0], whole[0])


def test_the_dispatch_is_replaceable():
    layer = mixture()
    x, seen = hidden(), []

    def twice(x_TD, routing):
        seen.append(routing)
        sent = dispatch(x_TD, routing)
        return sent._replace(combine=lambda y: 2 * sent.combine(y))

    expected = 2 * layer(x, Context())
    dispatch, layer.dispatch = layer.dispatch, twice
    torch.testing.assert_close(layer(x, Context()), expected)
    assert len(seen) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("capacity", [None, Capacity(0.7), Capacity(0.7, pad=True)])
def test_it_compiles_whole_and_once(capacity):
    torch._dynamo.reset()
    counters.clear()
    layer = mixture(torch.float32, sequence_loss=1.0, capacity=capacity, shared_size=4)

    def run(x, context):
        return (layer(x, context) ** 2).sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        x = torch.randn(2, 6, HIDDEN, generator=torch.Generator().manual_seed(seed))
        results = []
        for function in (run, compiled):
            layer.zero_grad()
            report = Report()
            loss = function(x, Context(auxiliary_weight=0.5, report=report))
            loss.backward()
            results.append([loss.detach(), *(p.grad.clone() for p in layer.parameters())])
            assert report.values["here.router.counts"].sum() == 2 * 6 * CHOSEN
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("shared", [0, 5])
def test_shapes_and_operations_are_those_of_the_layer(shared):
    layer = mixture(shared_size=shared, shared_gate=bool(shared), has_bias=True, batch_loss=1.0)
    built = {f"mlp.{name}": tuple(p.shape) for name, p in layer.named_parameters()}
    arguments = (HIDDEN, WIDTH, layer.router.spec, shared, bool(shared))
    assert list(moe_shapes(*arguments).items()) == list(built.items())
    with FlopCounterMode(display=False) as counter:
        layer(hidden().requires_grad_(), Context()).sum().backward()
    assert counter.get_total_flops() == 3 * 21 * moe_flops(*arguments)
    with FlopCounterMode(display=False) as counter:  # of the same products, one by one
        by_hand(layer, hidden())
    router = 2 * 21 * HIDDEN * EXPERTS
    assert counter.get_total_flops() - router == 2 * 21 * 3 * CHOSEN * WIDTH * HIDDEN


PUBLISHED = {
    "Mixtral 8x7B": (46_702_792_704, 12_879_925_248, {
        "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}),
    "Qwen3 30B-A3B": (30_532_122_624, 3_353_032_704, {
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048,
        "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32,
        "head_dim": 128, "max_window_layers": 48}),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    total, active, values = PUBLISHED[name]
    config = config_from_dict(values)
    assert num_parameters(config) == total
    assert num_active_parameters(config) == active


@pytest.mark.parametrize(
    ("case", "changes", "problem"),
    [
        ("mixtral", {"num_experts_per_tok": 6}, "at most num_local_experts = 5, got 6"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise: only 0.0 can be honoured"),
        ("mixtral", {"pad_experts_to_capacity": True}, "needs expert_capacity_factor, got True"),
        ("qwen3_moe", {"mlp_only_layers": [1, 7]}, "must be layers from 0 to 2, got 7"),
        ("qwen3_moe", {"num_local_experts": 9}, "contradicts num_experts = 7, got 9"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(case, changes, problem, family_config):
    with pytest.raises(ValueError, match=problem):
        family_config(case, **changes)


def test_layers_without_experts(family_config):
    config = family_config("qwen3_moe", mlp_only_layers=[0], decoder_sparse_step=1)
    assert [config.is_sparse(layer) for layer in range(3)] == [False, True, True]
