import pytest
import torch
from transformers import DeepseekV3Config, MixtralConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter, load_balancing_loss_func
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from mtron_models import Context, Report, ops, update_routers
from mtron_models import MixtralConfig as OurMixtralConfig
from mtron_models.layers.router import Router
from mtron_models.router_spec import Capacity, RouterSpec

HIDDEN, EXPERTS = 10, 12


def router(dtype=torch.float64, seed=0, **fields):
    torch.manual_seed(seed)
    made = Router(HIDDEN, RouterSpec(EXPERTS, **{"experts_per_token": 3, **fields}), "here").to(
        dtype
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def hidden(batch=2, seq=9, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, seq, HIDDEN, dtype=dtype, generator=generator)


def choose(made, x):
    return made(x, Context())[0]


def mixtral():
    config = MixtralConfig(hidden_size=HIDDEN, num_local_experts=EXPERTS, num_experts_per_tok=3)
    return MixtralTopKRouter(config), {"normalize": True}


def qwen3_moe():
    config = Qwen3MoeConfig(hidden_size=HIDDEN, num_experts=EXPERTS, num_experts_per_tok=3)
    return Qwen3MoeTopKRouter(config), {}


def deepseek_v3():
    config = DeepseekV3Config(
        hidden_size=HIDDEN,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.7,
    )
    spec = {
        "scoring": "sigmoid",
        "normalize": True,
        "scale": 1.7,
        "num_groups": 4,
        "groups_per_token": 2,
        "has_bias": True,
    }
    return DeepseekV3TopkRouter(config), spec


@pytest.mark.parametrize("make_theirs", [mixtral, qwen3_moe, deepseek_v3])
def test_choices_and_weights_are_those_of_transformers(make_theirs, tolerances):
    theirs, fields = make_theirs()
    ours = router(torch.float32, **fields)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight)
        if ours.bias is not None:
            theirs.e_score_correction_bias.copy_(ours.bias)
    x = hidden(4, 50, torch.float32)
    _, weights, experts = theirs(x)
    routing = choose(ours, x)
    found = torch.zeros(200, EXPERTS).scatter(1, routing.experts, routing.weights)
    expected = torch.zeros(200, EXPERTS).scatter(1, experts, weights)
    limit = tolerances.FP32_OP
    torch.testing.assert_close(found, expected, rtol=limit, atol=limit)


def test_softmax_over_the_chosen_is_softmax_and_division_by_the_sum():
    after, before = router(softmax_over_chosen=True), router(normalize=True)
    a, b = choose(after, hidden()), choose(before, hidden())
    assert torch.equal(a.experts, b.experts)
    torch.testing.assert_close(a.weights, b.weights, rtol=1e-12, atol=0)


def test_a_bias_changes_what_is_chosen_but_no_weight():
    made = router(scoring="sigmoid", has_bias=True)
    with torch.no_grad():
        made.bias.zero_()
        made.bias[5] = 10.0
    routing = choose(made, hidden())
    assert bool((routing.experts == 5).any(dim=1).all())
    scores = (hidden().flatten(0, 1) @ made.weight.T).sigmoid()
    torch.testing.assert_close(routing.weights, scores.gather(1, routing.experts))


def test_gradients_of_weights_and_losses():
    made = router(scoring="sigmoid", normalize=True, scale=1.3, sequence_loss=0.7, z_loss=0.3)

    def run(x, weight):
        context = Context(auxiliary_weight=0.5)
        routing, loss = torch.func.functional_call(made, {"weight": weight}, (x, context))
        return routing.weights, loss

    inputs = (hidden(1, 4).requires_grad_(), made.weight.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(run, inputs)


def test_logits_and_state_have_at_least_fp32():
    made = router(torch.bfloat16, has_bias=True, batch_loss=1.0)
    assert {name: p.dtype for name, p in made.named_parameters()} == {
        "weight": torch.bfloat16,
        "bias": torch.float32,
        "load": torch.float32,
    }
    assert choose(made, hidden(dtype=torch.bfloat16)).weights.dtype == torch.float32
    exact = torch.full((EXPERTS,), 1 + 2.0**-20)
    kept = router(torch.float32, has_bias=True)
    with torch.no_grad():
        kept.bias.copy_(exact)
    assert torch.equal(kept.to(torch.bfloat16).bias, exact)
    assert not kept.bias.requires_grad


def test_the_loss_of_a_row_is_that_of_transformers_times_the_coefficient(tolerances):
    config = OurMixtralConfig(
        vocab_size=9, hidden_size=HIDDEN, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, num_local_experts=EXPERTS,
        num_experts_per_tok=3, router_aux_loss_coef=0.25,
    )  # fmt: skip
    made = Router(HIDDEN, config.router_spec(), "here").double()
    torch.nn.init.normal_(made.weight)
    x = hidden(3, 20)
    _, loss = made(x, Context(auxiliary_weight=1.0))
    rows = [load_balancing_loss_func((row @ made.weight.T,), EXPERTS, 3) for row in x]
    limit = tolerances.FP32_OP  # theirs counts in fp32
    torch.testing.assert_close(loss, 0.25 * sum(rows).double(), rtol=limit, atol=0)


def test_losses_are_their_formulas():
    made = router(scoring="sigmoid", sequence_loss=0.5, batch_loss=2.0, z_loss=0.1)
    with torch.no_grad():
        made.load.copy_(torch.rand(EXPERTS))
    x, report = hidden(), Report()
    routing, loss = made(x, Context(auxiliary_weight=1.0, report=report))
    logits = x @ made.weight.T
    s = logits.sigmoid()
    p = s / s.sum(-1, keepdim=True)
    f = torch.nn.functional.one_hot(routing.experts, EXPERTS).sum(1).view(2, 9, EXPERTS).double()
    by_row = EXPERTS * (f.mean(1) / 3 * p.mean(1)).sum(-1)
    by_batch = EXPERTS * (made.load * p.mean(1)).sum(-1)
    z = logits.exp().sum(-1).log().square().mean(-1)
    expected = (0.5 * by_row + 2.0 * by_batch + 0.1 * z).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(report.values["here.z_loss"], z.sum(), rtol=1e-12, atol=0)
    assert torch.equal(report.values["here.counts"], f.sum((0, 1)).long())


def test_an_even_choice_costs_one():
    share = torch.full((4,), 0.25)
    assert ops.balancing_loss(share, share) == 1.0
    assert ops.balancing_loss(torch.eye(4)[0], torch.eye(4)[0]) == 4.0


def test_evaluation_has_no_losses_and_reports_nothing():
    made, report = router(sequence_loss=1.0).eval(), Report()
    _, loss = made(hidden(), Context(auxiliary_weight=1.0, report=report))
    assert loss is None and not report.values
    assert made.train()(hidden(), Context())[1] is None


def test_counts_are_summed_over_whoever_holds_the_rest_of_the_rows():
    made = router(sequence_loss=1.0)
    x = hidden(2, 10)
    _, whole = made(x, Context(auxiliary_weight=1.0))
    counts = [ops.count_experts(choose(made, part).experts.view(2, 5, 3), EXPERTS)
              for part in x.split(5, dim=1)]  # fmt: skip

    def reduce(name, tensor, over):
        assert (name, over) == ("here.counts", "sequence")
        return counts[0] + counts[1]

    parts = [made(part, Context(auxiliary_weight=1.0, reduce=reduce))[1] for part in x.split(5, 1)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)


def test_attach_loss_is_an_identity_with_one_more_gradient():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    value = (x**2).sum()
    y = ops.attach_loss(x * 2, value, 0.5)
    assert torch.equal(y, x * 2)
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 + 0.5 * 2 * x.detach())


def queue(experts, weights=None):
    return ops.places_in_queue(torch.tensor(experts), 3, weights)


def test_queues_are_by_position_or_by_weight_and_of_each_row():
    experts = [[[0, 1], [1, 0], [0, 2]], [[2, 1], [2, 1], [2, 1]]]
    assert queue(experts).tolist() == [[[0, 0], [1, 1], [2, 0]], [[0, 0], [1, 1], [2, 2]]]
    weights = torch.tensor([[[0.1, 0.5], [0.6, 0.3], [0.2, 0.9]], [[0.3, 0.3]] * 3])
    by_weight = queue(experts, weights)
    assert by_weight.tolist() == [[[2, 1], [0, 0], [1, 0]], [[0, 0], [1, 1], [2, 2]]]


@pytest.mark.parametrize("drop", ["weight", "position"])
def test_a_full_expert_turns_away_the_least(drop):
    made = router(capacity=Capacity(0.5, drop))
    free = router()
    x = hidden(3, 16)
    size = made.spec.capacity.of_sequence(16, made.spec)
    assert size == 2  # ceil(0.5 * 16 * 3 / 12)
    routing, everything = choose(made, x), choose(free, x)
    is_kept = routing.experts < EXPERTS
    assert torch.equal(routing.weights, torch.where(is_kept, everything.weights, 0.0))
    kept, experts, weights = (
        t.view(3, 48) for t in (is_kept, everything.experts, everything.weights)
    )
    for row in range(3):
        for expert in range(EXPERTS):
            mine = (experts[row] == expert).nonzero().flatten()
            order = (
                mine if drop == "position" else mine[weights[row, mine].argsort(descending=True)]
            )
            assert set(kept[row].nonzero().flatten().tolist()) & set(mine.tolist()) == set(
                order[:size].tolist()
            )


def test_a_bias_balances_a_skewed_router():
    made = router(scoring="sigmoid", has_bias=True, bias_update_rate=0.004)
    with torch.no_grad():
        made.bias.zero_()
        made.weight[:, 0] = torch.linspace(-5, 5, EXPERTS)
    x = hidden(8, 64)
    x[..., 0] = 1.0
    most = []
    for _ in range(400):
        report = Report()
        made(x, Context(report=report))
        most.append(int(report.values["here.counts"].max()))
        update_routers(made, report.values)
    even = 8 * 64 * 3 / EXPERTS
    assert most[0] > 3 * even
    assert most[-1] < 1.15 * even


def test_an_update_is_the_rate_times_the_sign():
    made = router(has_bias=True, bias_update_rate=0.25, batch_loss=1.0)
    with torch.no_grad():
        made.bias.zero_()
    counts = torch.tensor([4] * 6 + [2] * 3 + [6] * 3)
    update_routers(made, {"here.counts": counts, "elsewhere.counts": counts * 0})
    assert made.bias.tolist() == [0.0] * 6 + [0.25] * 3 + [-0.25] * 3
    torch.testing.assert_close(made.load.detach(), counts.double() / 48)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"experts_per_token": 13}, "experts_per_token: must be between 1 and num_experts = 12"),
        ({"num_groups": 5}, "num_groups: does not divide num_experts = 12, got 5"),
        ({"num_groups": 6, "groups_per_token": 1}, "groups_per_token: 1 groups of 2 have fewer"),
        ({"num_groups": 4, "groups_per_token": 5}, "groups_per_token: must be between 1 and"),
        ({"num_groups": 12, "groups_per_token": 4}, "best_per_group: must be between 1 and the 1"),
        ({"scoring": "sigmoid", "softmax_over_chosen": True}, "softmax_over_chosen: needs scoring"),
        ({"bias_update_rate": 0.1}, "bias_update_rate: needs has_bias, got 0.1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(fields, problem):
    with pytest.raises(ValueError, match=problem):
        RouterSpec(EXPERTS, **{"experts_per_token": 3, **fields})


def test_a_capacity_is_positive():
    with pytest.raises(ValueError, match="factor: must be positive, got 0"):
        Capacity(0)
