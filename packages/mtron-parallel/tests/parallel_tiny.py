"""A small decoder with every kind of module, its layout table, and how to train it."""

import zlib
from dataclasses import dataclass, field

import torch
from parallel_rules import Replicate, Shard
from torch import nn
from torch.nn import functional

from mtron_parallel import Mesh, MicroBatch, ParallelConfig, parallelize

HEAD_DIM, VOCABULARY, SEQ = 4, 29, 7
"""A vocabulary and a sequence that no number of ranks divides."""

EVALUATION_STEP = 99


@dataclass(frozen=True)
class Key:
    step: int
    sample_ids: torch.Tensor
    token_index: torch.Tensor | None = None


@dataclass(frozen=True)
class TinyContext:
    positions: torch.Tensor | None = None
    random: Key | None = None


class Attention(nn.Module):
    def __init__(self, hidden, heads, kv_heads):
        super().__init__()
        self.q_proj = nn.Linear(hidden, heads * HEAD_DIM)
        self.k_proj = nn.Linear(hidden, kv_heads * HEAD_DIM)
        self.v_proj = nn.Linear(hidden, kv_heads * HEAD_DIM, bias=False)
        self.o_proj = nn.Linear(heads * HEAD_DIM, hidden)

    def forward(self, x, context):
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (layer(x).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for layer in layers)
        positions = None if context is None else context.positions
        if positions is None:
            positions = torch.arange(q.shape[2])
        q = q * (1 + positions.to(q.dtype).cos()[:, None])
        grouped = q.shape[1] != k.shape[1]
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return self.o_proj(y.transpose(1, 2).flatten(-2))


class GatedMLP(nn.Module):
    def __init__(self, hidden, intermediate):
        super().__init__()
        self.gate_up = nn.Linear(hidden, 2 * intermediate)
        self.down = nn.Linear(intermediate, hidden)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * up)


class Stack(nn.Module):
    """A parameter of three dims."""

    def __init__(self, hidden):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, 3, hidden))

    def forward(self, x):
        return x * (1 + self.weight.sum((0, 1)))


class Block(nn.Module):
    def __init__(self, hidden, heads, kv_heads, intermediate):
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden)
        self.attention = Attention(hidden, heads, kv_heads)
        self.mlp_norm = nn.LayerNorm(hidden)
        self.mlp = GatedMLP(hidden, intermediate)
        self.stack = Stack(hidden)

    def forward(self, x, context):
        x = x + drop(self.attention(self.attention_norm(x), context), context, self.training)
        return self.stack(x + drop(self.mlp(self.mlp_norm(x)), context, self.training))


class HeadLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = cross_entropy

    def forward(self, head, hidden, labels):
        return self.op(head(hidden.flatten(0, 1)), labels.flatten()).view(labels.shape)


class Tiny(nn.Module):
    """The whole: also a parameter without dims, a frozen one and one that nothing uses."""

    def __init__(self, tied=True, head_loss=True, vocabulary=VOCABULARY, kv_heads=2, num_layers=2):
        super().__init__()
        hidden = 16
        self.scale = nn.Parameter(torch.empty(()))
        self.shift = nn.Parameter(torch.empty(hidden), requires_grad=False)
        self.unused = nn.Parameter(torch.empty(3, 5))
        self.embed = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleDict(
            {str(index): Block(hidden, 4, kv_heads, 24) for index in range(num_layers)}
        )
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, vocabulary, bias=not tied)
        if head_loss:
            self.head_loss = HeadLoss()
        if tied:
            self.head.weight = self.embed.weight

    def train_loss(self, inputs, labels, weights, context):
        x = self.embed(inputs) * self.scale + self.shift
        for layer in self.layers.values():
            x = layer(x, context)
        x = self.norm(x)
        if hasattr(self, "head_loss"):
            loss = self.head_loss(self.head, x, labels)
        else:
            loss = cross_entropy(self.head(x).flatten(0, 1), labels.flatten()).view(labels.shape)
        return (loss * weights).sum()


LAYOUT = {
    "embed.weight": Shard(pad=True),
    "head.*": Shard(pad=True),
    "*.[qk]_proj.*": Shard(unit=HEAD_DIM, replicate_if_fewer=True),
    "*.v_proj.weight": Shard(unit=HEAD_DIM, replicate_if_fewer=True),
    "*.o_proj.weight": Shard(1, unit=HEAD_DIM),
    "*.gate_up.*": Shard(segments=(24, 24)),
    "*.down.weight": Shard(1),
    "shift": Replicate(),
    "unused": Replicate(),
    "*": Replicate(sequence=True),
}


def cross_entropy(logits, labels):
    return functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), labels, reduction="none"
    )


def drop(x, context, training):
    """Zero elements that depend on the sample, the token's place and the element alone."""
    if not training or context is None or context.random is None:
        return x
    key = context.random
    token = torch.arange(x.shape[1]) if key.token_index is None else key.token_index
    samples, elements = key.sample_ids[:, None, None], torch.arange(x.shape[2])
    mixed = 131 * samples + 31 * token[:, None] + 17 * elements + 7 * key.step
    return x * (mixed % 11 > 1)


def initial_values(name, shape, dtype):
    """Values that depend on the name, large enough for all of them to matter."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3
    return (values + ("norm.weight" in name or name == "scale")).to(dtype)


def data(step, rows=8, seq=SEQ, vocabulary=VOCABULARY):
    """A global batch: tokens `[rows, seq + 1]`, mask `[rows, seq]`, uneven over the rows."""
    generator = torch.Generator().manual_seed(100 + step)
    tokens = torch.randint(vocabulary, (rows, seq + 1), generator=generator)
    share = torch.rand(rows, 1, generator=generator)
    return tokens, (torch.rand(rows, seq, generator=generator) > share).float()


def micro_batch(step, rows, with_context=True, **sizes):
    """Rows of the batch of a step."""
    tokens, mask = data(step, **sizes)
    samples = torch.arange(len(tokens))[rows]
    context = TinyContext(random=Key(step, samples)) if with_context else None
    return MicroBatch(tokens[rows, :-1], tokens[rows, 1:], mask[rows], context)


@dataclass(frozen=True)
class Case:
    """One training run; the same on any mesh."""

    model: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    optimizer: str = "adamw"
    steps: int = 5
    num_micro_batches: int = 4
    with_context: bool = True
    seq: int = SEQ


@dataclass
class Run:
    """What a rank saw: blocks are `(name, block, values, replica)`."""

    initial: list
    losses: list = field(default_factory=list)
    norms: list = field(default_factory=list)
    calls: list = field(default_factory=list)
    gradients: list = field(default_factory=list)
    weights: list = field(default_factory=list)
    evaluation: list = field(default_factory=list)


def build(case):
    with torch.device("meta"):
        return Tiny(**case.model).to(case.dtype)


def optimizer_of(tensors, kind):
    if kind == "sgd":
        return torch.optim.SGD(tensors, lr=0.05)
    return torch.optim.AdamW(tensors, lr=0.01, weight_decay=0.1)


def parallel_model(case, mesh):
    model = build(case)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    parallel = parallelize(model, mesh, LAYOUT)
    parallel.fill(lambda name, block: initial_values(name, shapes[name], case.dtype)[block.slices])
    return parallel


def micro_batches(case, step, mesh):
    """This rank's micro-batches: every dp-th."""
    size = 8 // case.num_micro_batches
    rows = [slice(i * size, (i + 1) * size) for i in range(case.num_micro_batches)]
    mine = rows[mesh.rank("dp") :: mesh.size("dp")]
    vocabulary = case.model.get("vocabulary", VOCABULARY)
    return [
        micro_batch(step, part, case.with_context, seq=case.seq, vocabulary=vocabulary)
        for part in mine
    ]


def blocks(shards, values_of):
    return [
        (shard.name, block, values.detach().clone(), shard.placement.replica)
        for shard in shards
        if (tensor := values_of(shard.tensor)) is not None
        for block, values in shard.blocks_of(tensor)
    ]


class Training:
    """A model on a mesh and its optimizer."""

    def __init__(self, case, mesh):
        self.case, self.mesh = case, mesh
        self.model = parallel_model(case, mesh)
        self.shards = self.model.shards()
        self.optimizer = optimizer_of([shard.tensor for shard in self.shards], case.optimizer)
        self.run = Run(initial=blocks(self.shards, lambda tensor: tensor))

    def step(self, step):
        """Train on the batch of a step."""
        run, counted = self.run, self.mesh.traffic.calls
        before = dict(counted)
        stats = self.model.forward_backward(micro_batches(self.case, step, self.mesh))
        run.calls.append({axis: number - before.get(axis, 0) for axis, number in counted.items()})
        norm = float(self.model.grad_norm())
        if step == 0:
            run.gradients += blocks(self.shards, lambda tensor: tensor.grad)
        scale_gradients([shard.tensor for shard in self.shards], norm)
        self.optimizer.step()
        self.optimizer.zero_grad()  # a caller may: the model does not need it
        self.model.publish()
        run.losses.append(stats.loss)
        run.norms.append(norm)

    def end(self):
        """Evaluate, where the last data-parallel rank has fewer micro-batches, and return all."""
        batches = micro_batches(self.case, EVALUATION_STEP, self.mesh)
        if self.mesh.rank("dp") == self.mesh.size("dp") - 1:
            batches = batches[:1]
        self.run.evaluation.append(self.model.evaluate(iter(batches)).loss)
        self.run.weights += blocks(self.shards, lambda tensor: tensor)
        return self.run


def scale_gradients(tensors, norm):
    """Clip to a norm of 1."""
    for tensor in tensors:
        if tensor.grad is not None:
            tensor.grad.mul_(min(1.0, 1.0 / norm))


def mesh_of(config):
    """The mesh of a configuration, or this process alone without one."""
    if config is None:
        return Mesh(torch.device("cpu"))
    return Mesh.over(ParallelConfig(**config), "cpu")


def train(case, config=None):
    """Train on the mesh of a configuration, or on a single process without one."""
    training = Training(case, mesh_of(config))
    for step in range(case.steps):
        training.step(step)
    return training.end()


def train_many(cases):
    """Train the (case, configuration) pairs one after another."""
    return [train(case, config) for case, config in cases]


def plain_model(case):
    """A model with its initial values, without a mesh."""
    model = Tiny(**case.model).to(case.dtype)
    for name, parameter in model.named_parameters():
        parameter.data = initial_values(name, tuple(parameter.shape), case.dtype)
    return model


def train_plainly(case, dp=1):
    """The same in plain PyTorch: one process, whole batches, the loss rule in one line.

    Args:
        case: what to train.
        dp: of the run to compare with, which decides what is evaluated.

    Returns:
        Losses, norms, gradients of the first step by name, weights at the end by name, evaluation.
    """
    model = plain_model(case)
    parameters = dict(model.named_parameters())
    optimizer = optimizer_of(list(parameters.values()), case.optimizer)
    vocabulary = case.model.get("vocabulary", VOCABULARY)
    sizes = {"seq": case.seq, "vocabulary": vocabulary}

    def loss_of(step, rows):
        batch = micro_batch(step, rows, case.with_context, **sizes)
        weights = batch.loss_mask.to(case.dtype) / batch.loss_mask.sum()
        return model.train_loss(batch.inputs, batch.labels, weights, batch.context)

    losses, norms, gradients = [], [], {}
    for step in range(case.steps):
        loss = loss_of(step, torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        for parameter in parameters.values():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        norm = float(nn.utils.get_total_norm(found.values()))
        if step == 0:
            gradients = {name: gradient.clone() for name, gradient in found.items()}
        scale_gradients(parameters.values(), norm)
        optimizer.step()
        losses.append(float(loss.detach()))
        norms.append(norm)
    size = 8 // case.num_micro_batches
    parts = torch.arange(8).split(size)
    evaluated = [parts[r::dp] for r in range(dp - 1)] + [parts[dp - 1 :: dp][:1]]
    rows = torch.cat([part for group in evaluated for part in group])
    model.eval()
    with torch.no_grad():
        evaluation = float(loss_of(EVALUATION_STEP, rows))
    weights = {name: p.detach() for name, p in parameters.items()}
    return losses, norms, gradients, weights, evaluation


def assemble(parts, shapes):
    """Put the blocks of all ranks together; each element must be spoken for exactly once."""
    whole, times = {}, {}
    for name, block, values, replica in (entry for part in parts for entry in part):
        if replica == 0:
            tensor = whole.setdefault(name, values.new_zeros(shapes[name]))
            count = times.setdefault(name, torch.zeros(shapes[name], dtype=torch.long))
            tensor[block.slices] = values
            count[block.slices] += 1
    for name, count in times.items():
        assert bool((count == 1).all()), f"{name}: not every element has one speaker"
    return whole


def gradient_error(found, expected):
    """The largest share by which a gradient is off."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.norm()) for gradient in expected.values())
    return max(
        float((found[name] - gradient).norm()) / max(float(gradient.norm()), 0.01 * largest)
        for name, gradient in expected.items()
    )
