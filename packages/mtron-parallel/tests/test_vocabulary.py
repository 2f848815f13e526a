import math
from functools import partial

import pytest
import torch
import torch.distributed as dist
from parallel_rules import Replicate, Shard
from torch import nn
from torch.nn import functional

from mtron_parallel import Block, Mesh, ParallelConfig, parallelize
from mtron_parallel.cuts import cut
from mtron_parallel.vocabulary import LossOptions, loss_options, vocabulary_cross_entropy

TOKENS = 12
VOCABULARIES = {2: (29, 32, 6, 5), 3: (29, 30, 9, 17, 5)}
"""By ranks: with padding, without, with less than a padded rank holds, with ranks without any."""
KINDS = ("normal", "far apart", "far from zero", "excluded tokens", "labels that do not count")


def logits_of(vocabulary, kind, dtype):
    """Logits `[tokens, vocabulary]`, labels `[tokens]` and weights `[tokens]`."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(TOKENS, vocabulary, dtype=torch.float64, generator=generator)
    labels = torch.randint(vocabulary, (TOKENS,), generator=generator)
    weights = torch.linspace(0, 1, TOKENS, dtype=torch.float64)
    if kind == "far apart":
        logits *= 1e4
    if kind == "far from zero":
        logits += torch.linspace(-1e5, 1e5, TOKENS, dtype=torch.float64)[:, None]
    if kind == "excluded tokens":  # but not those that come next
        excluded = torch.rand(logits.shape, generator=generator) > 0.5
        excluded[torch.arange(TOKENS), labels] = False
        logits = logits.masked_fill(excluded, -math.inf)
    if kind == "labels that do not count":
        labels[0] = -100
    return logits.to(dtype), labels, weights


def mesh_of_all():
    return Mesh.over(ParallelConfig(tp=dist.get_world_size()), "cpu")


def cross_entropies(dtype, options):
    """For each vocabulary and kind the losses, and the gradient of this rank's logits."""
    group = mesh_of_all().group("tp")
    return [
        loss_of_rank(group, *logits_of(vocabulary, kind, dtype), options)
        for vocabulary in VOCABULARIES[group.size]
        for kind in KINDS
    ]


def loss_of_rank(group, logits, labels, weights, options):
    own = cut((logits.shape[1], 1), Shard(pad=True), group.size, group.rank)
    # What stands where there is no token of the vocabulary must not count.
    local = torch.full((TOKENS, own.shape[0]), math.nan, dtype=logits.dtype)
    for block in own.blocks:
        local[:, : block.shape[0]] = logits[:, block.slices[0]]
    kept = local.clone()
    op = vocabulary_cross_entropy(own, group, logits.shape[1], options)
    loss = op(local.requires_grad_(), labels)
    (loss * weights).sum().backward()
    torch.testing.assert_close(local.detach(), kept, rtol=0, atol=0, equal_nan=True)
    return loss.detach(), local.grad


PLAIN = LossOptions()
OPTIONS = {
    "smoothed": LossOptions(label_smoothing=0.15),
    "z-loss": LossOptions(z_loss=0.01),
    "all": LossOptions(label_smoothing=0.15, z_loss=0.01, skips=True),
}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_cross_entropy_is_that_of_torch(workers, tolerances, size, dtype):
    check_cross_entropy(workers, tolerances, size, dtype, PLAIN)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cross_entropy_with_options_is_that_of_torch(workers, tolerances, options):
    check_cross_entropy(workers, tolerances, 2, torch.float64, options)


def check_cross_entropy(workers, tolerances, size, dtype, options):
    ranks = workers.run(cross_entropies, size, dtype, options)
    cases = [(vocabulary, kind) for vocabulary in VOCABULARIES[size] for kind in KINDS]
    for case, results in zip(cases, zip(*ranks, strict=True), strict=True):
        vocabulary, kind = case
        if kind == "excluded tokens" and options.label_smoothing:
            continue  # a target has a share of each token, so that the loss is infinite
        logits, labels, weights = logits_of(vocabulary, kind, dtype)
        logits.requires_grad_()
        wide = logits.to(torch.promote_types(dtype, torch.float32))
        expected = functional.cross_entropy(
            wide, labels, reduction="none", label_smoothing=options.label_smoothing
        )
        largest = wide.detach().amax(-1)  # far from zero, torch's own gradient is not exact
        penalty = options.z_loss * (largest + (wide - largest[:, None]).logsumexp(-1)) ** 2
        expected = expected + (penalty.masked_fill(labels < 0, 0) if options.skips else penalty)
        (expected * weights).sum().backward()
        exact = tolerances.FP64_OP if dtype == torch.float64 else tolerances.FP32_OP
        uncounted = kind == "labels that do not count" and not options.skips
        first = 1 if uncounted else 0  # torch gives these a loss of 0
        for loss, _ in results:
            assert loss.dtype == wide.dtype
            torch.testing.assert_close(loss[first:], expected.detach()[first:], **exact)
            assert bool(loss.isfinite().all())
        gradient = torch.cat([gradient for _, gradient in results], dim=1)
        rounding = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else exact
        torch.testing.assert_close(gradient[:, :vocabulary], logits.grad, **rounding)
        assert bool((gradient[:, vocabulary:] == 0).all()), "padding has a gradient"


def cross_entropy(logits, labels, **options):
    """What a model's loss is called."""


def masked_lm(logits, labels, **options):
    """What that of a masked language model is called."""


def test_options_of_a_loss():
    assert loss_options(cross_entropy) == LossOptions()
    assert loss_options(masked_lm) == LossOptions(skips=True)
    assert loss_options(partial(cross_entropy, z_loss=0.1)) == LossOptions(z_loss=0.1)
    smoothed = partial(masked_lm, label_smoothing=0.2, z_loss=0.1)
    assert loss_options(smoothed) == LossOptions(0.2, 0.1, skips=True)


@pytest.mark.parametrize(
    "op",
    [
        functional.nll_loss,
        partial(cross_entropy, temperature=2.0),
        partial(cross_entropy, None),
        lambda logits, labels: labels,
        object(),
    ],
)
def test_another_loss_is_refused(op):
    with pytest.raises(ValueError, match=r"head_loss\.op: over a vocabulary that is divided, only"):
        loss_options(op)


class Ends(nn.Module):
    """Only an embedding, one of whose tokens is not trained, and a head with a bias."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(29, 4, padding_idx=20)
        self.head = nn.Linear(4, 29)

    def train_loss(self, inputs, labels, weights, context):
        return (self.logits(inputs)[..., labels[0, 0]] * weights).sum()

    def logits(self, inputs):
        return self.head(self.embed(inputs).sin())


LAYOUT = {"embed.weight": Shard(pad=True), "head.*": Shard(pad=True)}


def values(name, block):
    """Any values, the same on all ranks."""
    shapes = {"embed.weight": (29, 4), "head.weight": (29, 4), "head.bias": (29,)}
    return torch.arange(math.prod(shapes[name])).sin().view(shapes[name])[block.slices].double()


def ends(size):
    """An `Ends` on this rank."""
    torch.manual_seed(0)
    mesh = mesh_of_all() if size > 1 else Mesh(torch.device("cpu"))
    with torch.device("meta"):
        model = Ends().double()
    parallel = parallelize(model, mesh, LAYOUT)
    parallel.fill(values)
    return model, parallel


def logits_and_gradients():
    """Logits and gradients of a function of all of them."""
    return run_ends(*ends(dist.get_world_size()))


def run_ends(model, parallel):
    logits = model.logits(torch.tensor([[0, 7, 14, 15, 16, 20, 28], [28, 28, 3, 4, 5, 6, 0]]))
    (logits * torch.arange(logits.numel()).view(logits.shape).cos()).sum().backward()
    gradients = [
        (shard.name, block, part)
        for shard in parallel.shards()
        for block, part in shard.blocks_of(shard.tensor.grad)
    ]
    return logits.detach(), gradients


@pytest.mark.parametrize("size", [2, 3])
def test_embedding_and_head_are_those_of_one_process(workers, tolerances, size):
    logits, gradients = run_ends(*ends(1))
    expected = {name: gradient for name, _, gradient in gradients}
    assert bool((expected["embed.weight"][20] == 0).all())
    for found, parts in workers.run(logits_and_gradients, size):
        assert found.shape == (2, 7, 29)
        torch.testing.assert_close(found, logits, **tolerances.FP64_OP)
        for name, block, gradient in parts:
            torch.testing.assert_close(gradient, expected[name][block.slices], **tolerances.FP64_OP)


def test_blocks_of_the_vocabulary_follow_each_other():
    own = [cut((29, 4), Shard(pad=True), 3, rank) for rank in range(3)]
    assert [part.blocks for part in own] == [
        (Block((0, 0), (16, 4)),),
        (Block((16, 0), (13, 4)),),
        (),
    ]
    assert cut((29, 4), Replicate(), 3, 1).shape == (29, 4)
