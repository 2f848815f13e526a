import pytest
import torch
from parallel_rules import Replicate, Shard
from torch import nn

from mtron_parallel import Block, Mesh, MicroBatch, Placement, parallelize

CPU = Mesh(torch.device("cpu"))


class Tied(nn.Module):
    """A tiny language model whose head is tied to its embedding, with one dropout site."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def backbone(self, inputs, context):
        return self.drop(self.norm(self.embed(inputs)))

    def loss(self, hidden, labels):
        logits = self.head(hidden).transpose(1, 2)
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    def train_loss(self, inputs, labels, weights, context):
        return (self.loss(self.backbone(inputs, context), labels) * weights).sum()


LAYOUT = {"embed.*": Shard(pad=True), "norm.*": Replicate(sequence=True)}


def build(device="cpu"):
    with torch.device(device):
        return Tied().double()


def random_batch(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(11, (rows, 8), generator=generator)
    mask = (torch.rand(rows, 7, generator=generator) > 0.4).long()
    return MicroBatch(tokens[:, :-1], tokens[:, 1:], mask, context=None)


def split(batch, sizes):
    parts = zip(
        batch.inputs.split(sizes),
        batch.labels.split(sizes),
        batch.loss_mask.split(sizes),
        strict=True,
    )
    return [MicroBatch(*part, context=None) for part in parts]


def filled(seed=0):
    torch.manual_seed(seed)
    source = dict(build().named_parameters())
    model = parallelize(build("meta"), CPU, LAYOUT)
    model.fill(lambda name, block: source[name].detach()[block.slices])
    return model.module.eval() and model


def test_any_split_into_micro_batches_gives_the_same_gradient():
    batch, model = random_batch(6), filled()
    stats = model.forward_backward([batch])
    expected = [shard.tensor.grad.clone() for shard in model.shards()]
    for sizes in ([1] * 6, [2] * 3, [3, 3]):
        again = model.forward_backward(split(batch, sizes))
        assert again.num_tokens == stats.num_tokens == int(batch.loss_mask.sum())
        assert again.loss == pytest.approx(stats.loss, rel=1e-14)
        for shard, gradient in zip(model.shards(), expected, strict=True):
            torch.testing.assert_close(shard.tensor.grad, gradient, rtol=1e-12, atol=1e-14)


def test_loss_is_the_mean_over_valid_tokens():
    batch, model = random_batch(4, seed=3), filled()
    module = model.module
    per_token = module.loss(module.backbone(batch.inputs, None), batch.labels)
    expected = per_token[batch.loss_mask.bool()].mean().item()
    assert model.forward_backward([batch]).loss == pytest.approx(expected, rel=1e-14)
    assert model.evaluate(iter(split(batch, [3, 1]))).loss == pytest.approx(expected, rel=1e-14)


def test_a_step_starts_from_zero_gradients():
    batch, model = random_batch(2), filled()
    model.forward_backward([batch])
    first = model.grad_norm()
    model.forward_backward([batch])
    assert torch.equal(model.grad_norm(), first)


def test_fill_keeps_ties_and_asks_once_per_parameter():
    asked = []

    def values(name, block):
        asked.append(name)
        return torch.ones(block.shape)

    model = parallelize(build("meta"), CPU, LAYOUT)
    model.fill(values)
    assert asked == ["embed.weight", "norm.weight", "norm.bias"]
    assert model.module.head.weight is model.module.embed.weight
    assert all(p.device.type == "cpu" and bool((p == 1).all()) for p in model.module.parameters())


def test_grad_norm_counts_a_tied_parameter_once():
    model = filled()
    model.forward_backward([random_batch(3)])
    flat = torch.cat([shard.tensor.grad.flatten() for shard in model.shards()])
    torch.testing.assert_close(model.grad_norm(), flat.norm(), rtol=1e-14, atol=0)


def test_grad_norm_before_a_backward_names_the_parameter():
    with pytest.raises(ValueError, match=r"embed\.weight: has no gradient"):
        filled().grad_norm()


def test_evaluate_turns_dropout_off_and_restores_the_mode():
    model = filled()
    model.module.train()
    losses = {model.evaluate(iter([random_batch(3)])).loss for _ in range(3)}
    assert len(losses) == 1
    assert model.module.training


def test_evaluate_leaves_no_gradient():
    model = filled()
    model.evaluate(iter([random_batch(3)]))
    assert all(shard.tensor.grad is None for shard in model.shards())


def test_micro_batches_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape, got \[\(1, 7\), \(2, 7\)\]"):
        filled().forward_backward([random_batch(1), random_batch(2)])
    with pytest.raises(ValueError, match="got none"):
        filled().forward_backward([])


def test_a_batch_without_valid_tokens_is_refused():
    batch = random_batch(2)
    empty = MicroBatch(batch.inputs, batch.labels, torch.zeros_like(batch.loss_mask), None)
    with pytest.raises(ValueError, match="no token"):
        filled().forward_backward([empty])
    with pytest.raises(ValueError, match="no token"):
        filled().evaluate(iter([empty]))


def test_a_parameter_without_a_layout_rule_is_named():
    with pytest.raises(ValueError, match=r"norm\.weight"):
        parallelize(build("meta"), CPU, {"embed.*": Shard(pad=True)})
    with pytest.raises(ValueError, match=r"norm\.weight is neither a Shard nor a Replicate"):
        parallelize(build("meta"), CPU, {"embed.*": Shard(pad=True), "norm.*": "replicate"})


def test_placements_cover_the_model():
    placements = filled().placements()
    whole = Block((0, 0), (11, 6))
    assert placements["embed.weight"] == Placement((11, 6), torch.float64, (whole,), replica=0)
    assert placements["embed.weight"].is_whole
    assert set(placements) == {"embed.weight", "norm.weight", "norm.bias"}


def test_a_model_with_values_keeps_them():
    source = build()
    expected = {name: p.detach().clone() for name, p in source.named_parameters()}
    model = parallelize(source, CPU, LAYOUT)
    assert model.module is source
    for shard in model.shards():
        assert torch.equal(shard.tensor, expected[shard.name])
    assert source.head.weight is source.embed.weight


def test_a_model_without_values_must_be_filled():
    model = parallelize(build("meta"), CPU, LAYOUT)
    assert model.shards() == []
    with pytest.raises(AssertionError, match="fill gives the model its values first"):
        model.forward_backward([random_batch(2)])


def test_filling_again_keeps_the_tensors():
    model = filled()
    before = [shard.tensor for shard in model.shards()]
    model.fill(lambda name, block: torch.full(block.shape, 2.0))
    assert all(now.tensor is then for now, then in zip(model.shards(), before, strict=True))
    assert all(bool((tensor == 2).all()) for tensor in before)


def test_a_caller_may_drop_gradients():
    model, batch = filled(), random_batch(3)
    model.forward_backward([batch])
    norm = model.grad_norm()
    torch.optim.SGD([shard.tensor for shard in model.shards()], lr=0.0).zero_grad()
    model.forward_backward([batch])
    assert torch.equal(model.grad_norm(), norm)


def test_parameters_without_tokens_have_a_gradient_of_zero():
    """In one process as on several: optimizers treat a gradient of zero and none differently."""
    model = filled()
    model.module.train_loss = lambda inputs, labels, weights, context: (
        model.module.embed(inputs).sum(-1) * weights
    ).sum()
    model.forward_backward([random_batch(2)])
    found = {shard.name: shard.tensor.grad for shard in model.shards()}
    assert bool((found["norm.weight"] == 0).all())
    assert bool((found["embed.weight"] != 0).any())


def test_parameters_may_be_frozen():
    source = build()
    source.norm.requires_grad_(False)
    model = parallelize(source, CPU, LAYOUT)
    model.forward_backward([random_batch(2)])
    flat = {shard.name: shard.tensor for shard in model.shards()}
    assert flat["norm.weight"].grad is None
    assert not flat["norm.weight"].requires_grad
    assert float(model.grad_norm()) == pytest.approx(float(flat["embed.weight"].grad.norm()))


def test_bf16_gradients_are_fp32():
    with torch.device("meta"):
        model = parallelize(Tied().bfloat16(), CPU, LAYOUT)
    model.fill(lambda name, block: torch.ones(block.shape))
    batch = random_batch(2)
    model.forward_backward([batch, batch])
    assert {shard.tensor.grad.dtype for shard in model.shards()} == {torch.float32}
    assert model.grad_norm().dtype == torch.float64


def test_types_may_be_mixed():
    source = build()
    source.norm.float()
    source.drop.register_forward_pre_hook(lambda module, inputs: inputs[0].double())
    source.norm.register_forward_pre_hook(lambda module, inputs: inputs[0].float())
    model = parallelize(source, CPU, LAYOUT)
    model.forward_backward([random_batch(2)])
    squares = sum(float(shard.tensor.grad.double().square().sum()) for shard in model.shards())
    assert float(model.grad_norm()) == pytest.approx(squares**0.5, rel=1e-6)


def test_nothing_to_publish_alone():
    model = filled()
    model.publish()
    model.wait()
    model.forward_backward([random_batch(2)])


class Published:
    """Weights that note that they were waited for."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait(self):
        self.log.append(self.name)


@pytest.mark.parametrize("compiled", [False, True])
def test_weights_that_no_block_waits_for_are_waited_for_before_the_loss(compiled):
    model, log = filled(), []
    plain = model.module.train_loss

    def note(module, arguments):
        log.append("forward")

    model.module.embed.register_forward_pre_hook(note)
    if compiled:  # hooks may not run in there
        model.module.train_loss = lambda *arguments: plain(*arguments)
    model._early = [Published("root", log)]
    model._weights = [*model._early, Published("block", log)]
    model.evaluate(iter([random_batch(2)]))
    assert log == (["root", "block", "forward"] if compiled else ["root", "forward"])
