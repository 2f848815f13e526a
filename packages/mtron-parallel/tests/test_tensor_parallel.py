"""What tensor parallelism makes of modules, and what it refuses. Training: test_parity.py."""

import warnings
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from parallel_rules import Replicate, Shard
from parallel_tiny import (
    LAYOUT,
    Case,
    Tiny,
    TinyContext,
    Training,
    cross_entropy,
    initial_values,
    mesh_of,
    micro_batch,
    train_plainly,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from mtron_parallel import Mesh, ParallelConfig, parallelize
from mtron_parallel.collectives import Group, Traffic
from mtron_parallel.tensor_parallel import Region

CASE = Case({"num_layers": 1}, num_micro_batches=2, steps=1)
SPLIT = {"tp": 2, "sequence_parallel": True}


def lonely_mesh(config, rank=0):
    """A mesh of two ranks that cannot communicate, for what is decided before."""
    group = Group("tp", (0, 1), rank, None, 1.0, Traffic())
    groups = {"tp": group, "world": group}
    return Mesh(torch.device("cpu"), ParallelConfig(dp=1, **config), (0, 1), rank, groups)


def meta(model=Tiny, **options):
    with torch.device("meta"):
        return model(**options)


class Residual(nn.Module):
    """Products without a module of their own: the input goes on beside them."""

    def __init__(self, hidden):
        super().__init__()
        self.up, self.down = nn.Linear(hidden, 24), nn.Linear(24, hidden)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Parallel(nn.Module):
    """Two branches on one input; the layers of one are in containers, which nobody calls."""

    def __init__(self, hidden):
        super().__init__()
        self.columns = nn.ModuleDict({"a": nn.Linear(hidden, 8), "b": nn.Linear(hidden, 8)})
        self.rows = nn.ModuleList([nn.Linear(8, hidden, bias=False)])
        self.up, self.down = nn.Linear(hidden, 24), nn.Linear(24, hidden)

    def forward(self, x):
        first = self.rows[0](self.columns["a"](x).tanh() * self.columns["b"](x))
        return first + self.down(self.up(x).relu())


class Zoo(nn.Module):
    """Products at the root, after a norm in a sequence, in containers, beside the input."""

    def __init__(self):
        super().__init__()
        hidden = 12
        self.embed = nn.Embedding(29, hidden, padding_idx=3)
        self.up, self.down = nn.Linear(hidden, 24), nn.Linear(24, hidden)
        self.residual = Residual(hidden)
        self.sequence = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, 24), nn.GELU(), nn.Linear(24, hidden)
        )
        self.parallel = Parallel(hidden)
        self.head = nn.Linear(hidden, 29)

    def train_loss(self, inputs, labels, weights, context):
        x = self.embed(inputs)
        x = x + self.down(self.up(x).sigmoid())
        x = self.parallel(self.sequence(self.residual(x)))
        loss = cross_entropy(self.head(x).flatten(0, 1), labels.flatten())
        return (loss.view(labels.shape) * weights).sum()


ZOO_LAYOUT = {
    "embed.weight": Shard(pad=True),
    "head.*": Shard(pad=True),
    "*up.*": Shard(),
    "*columns.*": Shard(),
    "sequence.1.*": Shard(),
    "*down.weight": Shard(1),
    "*rows.0.weight": Shard(1),
    "sequence.3.weight": Shard(1),
    "*": Replicate(sequence=True),
}


def zoo_gradients(config):
    """Loss and gradients of a Zoo, and the tensor-parallel collectives that it took."""
    mesh = mesh_of(config)
    model = meta(Zoo).double()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    parallel = parallelize(model, mesh, ZOO_LAYOUT)
    parallel.fill(
        lambda name, block: initial_values(name, shapes[name], torch.float64)[block.slices]
    )
    loss = parallel.forward_backward([micro_batch(0, slice(0, 4))]).loss
    gradients = {
        shard.name: list(shard.blocks_of(shard.tensor.grad)) for shard in parallel.shards()
    }
    return loss, gradients, mesh.traffic.calls.get("tp")


# The sums after the embedding and 5 pairs of products, those before the pairs and the head in the
# backward, all logits. Then each also in the other direction; the gradients of norms and biases.
@pytest.mark.parametrize(
    ("config", "expected_calls"), [({"tp": 2}, 6 + 6 + 1), (SPLIT, 2 * (6 + 6) + 1 + 1)]
)
def test_products_may_stand_anywhere(workers, tolerances, config, expected_calls):
    loss, expected, _ = zoo_gradients(None)
    for found, gradients, calls in workers.run(zoo_gradients, 2, config):
        assert found == pytest.approx(loss, rel=0, abs=tolerances.FP64_LOSS)
        for name, parts in gradients.items():
            ((_, whole),) = expected[name]
            for block, values in parts:
                torch.testing.assert_close(values, whole[block.slices], **tolerances.FP64_OP)
        assert calls == expected_calls


def trained(config, wrap=None):
    """One step of `Tiny`, changed by `wrap`: loss, gradient norm, names of parameters after it."""
    mesh = Mesh.over(ParallelConfig(**config), "cpu")
    training = Training(CASE, mesh)
    if wrap is not None:
        globals()[wrap](training.model.module)
    training.step(0)
    names = [name for name, _ in training.model.module.named_parameters()]
    return training.run.losses[0], training.run.norms[0], names


def recompute(model):
    """Run attention and feed-forward layers again in the backward, which leaves their last module
    as soon as that has its input."""
    for layer in model.layers.values():
        for module in (layer.attention, layer.mlp):
            plain = module.forward
            module.forward = lambda *arguments, plain=plain: checkpoint(
                plain, *arguments, use_reentrant=False
            )


def compile_all(model):
    """Compile the whole of forward and backward, without a break."""
    # torch's own tracing of autograd functions warns.
    warnings.filterwarnings("ignore", message=".*should not be instantiated")
    compiled = torch.compile(model.train_loss, fullgraph=True, dynamic=False, backend="aot_eager")
    model.train_loss = lambda *arguments: compiled(*arguments)


@pytest.mark.parametrize("wrap", ["recompute", "compile_all"])
def test_blocks_can_be_recomputed_and_compiled(workers, tolerances, wrap):
    losses, norms, *_ = train_plainly(CASE)
    names = [name for name, _ in meta(**CASE.model).named_parameters()]
    for loss, norm, found in workers.run(trained, 2, SPLIT, wrap):
        assert loss == pytest.approx(losses[0], rel=0, abs=tolerances.FP64_LOSS)
        assert norm == pytest.approx(norms[0], rel=tolerances.FP64_LOSS)
        assert found == names


def test_modules_say_their_local_sizes():
    model = meta(tied=False)
    parallelize(model, lonely_mesh({"tp": 2}), LAYOUT)
    attention = model.layers["0"].attention
    assert (attention.q_proj.out_features, attention.q_proj.in_features) == (8, 16)
    assert (attention.o_proj.out_features, attention.o_proj.in_features) == (16, 8)
    assert model.embed.num_embeddings == 16
    assert model.head.weight.shape == (16, 16)


def test_a_tied_head_stays_tied():
    model = meta(tied=True)
    parallelize(model, lonely_mesh({"tp": 2}), LAYOUT)
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("rank", [0, 1])
def test_a_token_that_is_not_trained_is_found_on_its_rank(rank):
    model = meta(Zoo)
    parallelize(model, lonely_mesh({"tp": 2}, rank), ZOO_LAYOUT)
    assert model.embed.padding_idx == (3 if rank == 0 else None)


def refuse(config=None, layout=None, change=None, model=Tiny, **options):
    """The message with which a layout or a model is refused."""
    built = meta(model, **options)
    if change is not None:
        change(built)
    with pytest.raises(ValueError) as error:
        parallelize(built, lonely_mesh(config or {"tp": 2}), before(layout or {}))
    return str(error.value)


def before(layout):
    """The usual layout after some rules that count first."""
    return layout | {pattern: rule for pattern, rule in LAYOUT.items() if pattern not in layout}


def test_biases_must_go_with_their_weights():
    text = refuse(layout={"*.gate_up.bias": Replicate()})
    assert text.startswith("layout: layers.0.mlp.gate_up.bias is not cut in the same places")
    text = refuse(layout={"*.gate_up.bias": Shard()})  # without the segments of its weight
    assert text.startswith("layout: layers.0.mlp.gate_up.bias is not cut in the same places")
    # With one key head each rank has all of it, but sees only its own queries.
    text = refuse(layout={"*.k_proj.bias": Replicate()}, kv_heads=1)
    assert text.startswith("layout: layers.0.attention.k_proj.bias is not cut")
    text = refuse(layout={"*.down.bias": Shard()})
    assert text.startswith("layout: layers.0.mlp.down.bias is to be cut, but it is added to")
    text = refuse(layout={"*.o_proj.bias": Replicate()})
    assert text.endswith("use Replicate(sequence=True) for it")


def test_only_known_modules_are_cut():
    text = refuse(layout={"*.stack.weight": Shard(2)})
    assert text.startswith("layout: layers.0.stack.weight is to be cut")
    assert "got Stack layers.0.stack" in text
    text = refuse(layout={"*.gate_up.weight": Replicate()})
    assert text.startswith("layout: layers.0.mlp.gate_up.bias is to be cut")


def test_embeddings_that_do_more_than_look_up_are_refused():
    text = refuse(layout={"embed.weight": Shard(1)})
    assert text.startswith("layout: embed.weight of an embedding can be cut in runs of its rows")

    def limit(model):
        model.embed.max_norm = 1.0

    text = refuse(change=limit)
    assert text.startswith("embed: an embedding that is cut takes no max_norm")


def test_a_loss_without_an_op_is_refused():
    def remove(model):
        del model.head_loss.op

    assert refuse(change=remove).startswith("head_loss: must be a module with the loss per token")


def test_a_divided_sequence_needs_both_ends_cut():
    text = refuse(SPLIT, {"head.*": Replicate()}, tied=False)
    assert "but of Tiny only the embedding is cut" in text
    text = refuse(SPLIT, {"embed.weight": Replicate()}, tied=False)
    assert text.startswith("parallel.sequence_parallel:")
    assert "but of Tiny only the head is cut" in text


def test_without_a_divided_sequence_the_ends_may_be_whole():
    layout = before({"head.*": Replicate(), "embed.weight": Replicate()})
    parallelize(meta(tied=False), lonely_mesh({"tp": 2}), layout)


def region_of(rank, split=True):
    mesh = lonely_mesh(SPLIT if split else {"tp": 2}, rank)
    return Region(mesh.group("tp"), split)


def test_a_context_is_completed_for_divided_tokens():
    batch = micro_batch(0, slice(0, 4))
    found = [region_of(rank).begin(batch.inputs, batch.context) for rank in (0, 1)]
    for context in found:
        assert torch.equal(context.positions, torch.arange(7))  # of all: attention sees all
        assert context.random.sample_ids is batch.context.random.sample_ids
    # 7 tokens make 4 for each; the last is padding, whatever its random numbers.
    assert torch.equal(found[0].random.token_index, torch.arange(4))
    assert torch.equal(found[1].random.token_index, torch.tensor([4, 5, 6, 6]))
    assert batch.context.positions is None


def test_places_that_are_given_are_divided():
    batch = micro_batch(0, slice(0, 2))
    places = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 0, 1, 2, 3, 4, 5]])
    random = replace(batch.context.random, token_index=places)
    context = TinyContext(positions=places, random=random)
    found = region_of(1).begin(batch.inputs, context)
    assert found.positions is places
    assert torch.equal(found.random.token_index, places[:, [4, 5, 6, 6]])


@pytest.mark.parametrize("context", [None, "anything", {"positions": None}, TinyContext])
def test_other_contexts_are_handed_on(context):
    tokens = torch.zeros(2, 7, dtype=torch.long)
    assert region_of(0).begin(tokens, context) is context
    batch = micro_batch(0, slice(0, 2))
    assert region_of(0, split=False).begin(batch.inputs, batch.context) is batch.context


def test_worlds_of_one_need_no_hooks():
    model, config = meta(), ParallelConfig(dp=1, sequence_parallel=True)
    parallelize(model, Mesh(torch.device("cpu"), config), LAYOUT)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not dist.is_initialized()
