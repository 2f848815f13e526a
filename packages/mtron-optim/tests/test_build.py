import pytest
import torch

from mtron_optim import (
    CombinedOptimizer,
    Muon,
    MuonConfig,
    OptimConfig,
    build_optimizer,
    set_learning_rate,
    shards_of,
)


def test_adamw_is_torchs(make_model, train):
    config = OptimConfig(lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)
    ours, theirs = make_model(), make_model()
    decayed = [p for p in theirs.parameters() if p.ndim > 1]
    plain = [p for p in theirs.parameters() if p.ndim == 1]
    reference = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.3}, {"params": plain, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.8, 0.9),
        eps=1e-6,
        fused=True,
    )
    optimizer = build_optimizer(shards_of(ours), config)
    assert type(optimizer) is torch.optim.AdamW
    assert train(ours, optimizer, 0, 5) == train(theirs, reference, 0, 5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_muon_is_muon_and_adamw_side_by_side(make_model, make_batch, train):
    config = OptimConfig(kind="muon", lr=0.01, weight_decay=0.1, muon=MuonConfig(lr=0.02))
    ours, theirs = make_model(), make_model()
    optimizer = build_optimizer(shards_of(ours), config)
    train(ours, optimizer, 0, 4)
    named = dict(theirs.named_parameters())
    matrices = [p for n, p in named.items() if p.ndim == 2 and n.startswith("layers")]
    ends = [named["embed.weight"], named["head.weight"]]
    vectors = [p for p in named.values() if p.ndim == 1]
    muon = Muon(matrices, lr=0.02, weight_decay=0.1)
    adamw = torch.optim.AdamW(
        [{"params": ends, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.01,
        betas=config.betas,
        fused=True,
    )
    for step in range(4):
        theirs.zero_grad()
        theirs.train_loss(*make_batch(step)).backward()
        muon.step()
        adamw.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_training_lowers_the_loss(kind, make_model, make_batch):
    model = make_model()
    config = OptimConfig(kind=kind, lr=0.01, weight_decay=0.0)
    optimizer = build_optimizer(shards_of(model), config)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.train_loss(*make_batch(0))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_the_learning_rate_is_a_factor_on_each_groups_own(make_model):
    config = OptimConfig(kind="muon", lr=0.1, embedding_lr=0.4, muon=MuonConfig(lr=0.02))
    optimizer = build_optimizer(shards_of(make_model()), config)
    for scale in (0.5, 0.25):
        set_learning_rate(optimizer, scale)
        rates = {
            name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]
        }
        assert rates["embed.weight"] == 0.4 * scale
        assert rates["head.weight"] == 0.1 * scale
        assert rates["layers.0.up.weight"] == 0.02 * scale


def test_the_rate_that_is_set_is_the_one_that_acts(make_model, make_batch):
    model = make_model()
    optimizer = build_optimizer(shards_of(model), OptimConfig(kind="muon"))
    model.train_loss(*make_batch()).backward()
    before = [p.detach().clone() for p in model.parameters()]
    set_learning_rate(optimizer, 0.0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_frozen_parameters_are_left_out(make_model):
    model = make_model()
    model.embed.weight.requires_grad_(False)
    optimizer = build_optimizer(shards_of(model), OptimConfig())
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert "embed.weight" not in names
    assert len(names) == len(list(model.parameters())) - 1
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to optimize"):
        build_optimizer(shards_of(model), OptimConfig())


def test_a_part_of_a_matrix_is_refused_by_name(make_model, parts_of):
    shards = parts_of(make_model(), partial=("layers.1.down.weight", "layers.0.norm.weight"))
    with pytest.raises(ValueError, match=r"layers\.1\.down\.weight: Muon .* part .*adamw"):
        build_optimizer(shards, OptimConfig(kind="muon"))
    build_optimizer(shards, OptimConfig(kind="adamw"))
    excluded = MuonConfig(exclude=("*.down.weight",))
    build_optimizer(shards, OptimConfig(kind="muon", muon=excluded))


def test_only_one_algorithm_needs_no_combination(make_model):
    model = make_model()
    matrices = [s for s in shards_of(model) if s.name == "layers.0.up.weight"]
    assert type(build_optimizer(matrices, OptimConfig(kind="muon"))) is Muon
    both = build_optimizer(shards_of(model), OptimConfig(kind="muon"))
    assert type(both) is CombinedOptimizer
