"""How much memory a rank's weights, gradients and optimizer state take. Imports no torch.

Counted are the part of every parameter that a rank holds (with the padding of the vocabulary, and
key and value heads that several ranks hold) and the flat buffers with their padding. Assumed is
that all parameters are trained and of one element type, that buckets are filled in the reverse
order of the parameters, each with such whose gradients are summed over the same ranks, and that
tensors start where `plan_flat` puts them. Left out are activations, temporary tensors of autograd
and of the optimizer, the optimizer's counters, and what torch and its allocator take themselves.
"""

from dataclasses import dataclass
from math import prod

from mtron_parallel.config import ParallelConfig, SupportsLayout
from mtron_parallel.cuts import Cut, Rule, ShardRule, computes_part, cut, rule_of
from mtron_parallel.flat import FlatLayout, plan_layouts, rows_of

BUCKETS_IN_FLIGHT = 2
"""Buckets whose gradients exist at a time with zero = 2: one is filled, one is being summed."""
SLOT_BYTES = 512 * 1024
"""What a rank writes at a time into memory that the ranks of a host share; larger tensors go in
parts, and small enough to stay in the processor's cache. A multiple of every element's size."""
SLOTS_PER_RANK = 2
"""Slots of a rank in that memory, used in turn."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that one rank holds, the same on every rank.

    Attributes:
        num_elements: elements of the rank's parameters after the tensor-parallel cut, with the
            vocabulary's padding.
        weights_bytes: the weights, whole under every `zero`.
        gradients_bytes: what lasts for the whole step: all gradients with zero = 0, these and the
            rank's share of their sum with zero = 1, that share alone with zero = 2.
        optimizer_bytes: optimizer state of all elements with zero = 0, else of the rank's share.
        communication_bytes: what comes and goes during the backward: with zero = 2 the two
            largest buckets, each with the share that its sum leaves on the rank; over gloo also
            the shares that more than one other rank has sent, with zero = 1 those of all buckets,
            and the memory through which tensor-parallel ranks of one host exchange activations.
    """

    num_elements: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    communication_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum of all: the peak."""
        parts = (self.weights_bytes, self.gradients_bytes, self.optimizer_bytes)
        return sum(parts) + self.communication_bytes


def plan_memory(
    model: SupportsLayout,
    config: ParallelConfig,
    *,
    weight_bytes: int = 4,
    gradient_bytes: int = 4,
    state_bytes: int = 8,
    gloo: bool = False,
) -> MemoryPlan:
    """Return what a rank of the layout `config` holds of `model`.

    Args:
        model: the shapes of its parameters and how they may be cut.
        config: with `dp` filled in by `resolve`.
        weight_bytes: bytes of a weight.
        gradient_bytes: bytes of a gradient, in the type in which gradients are summed.
        state_bytes: bytes of optimizer state per weight; AdamW keeps two numbers.
        gloo: whether ranks communicate over gloo, where the other ranks' shares of a sum take
            memory until they are added up, and tensor-parallel ranks share memory.

    Raises:
        ValueError: `dp` is -1, or `tp` ranks cannot cut a parameter.
    """
    if config.dp == -1:
        raise ValueError("parallel.dp: must be filled in, got -1; call resolve(world_size) first")
    parameters = _cut_parameters(model, config)
    elements = sum(prod(own.shape) for own, _ in parameters)
    buckets = _plan_buckets(parameters, config, gradient_bytes)
    share = sum(bucket.segment for bucket in buckets)
    buffers = sum(bucket.size for bucket in buckets) if config.dp > 1 else elements
    zero = config.zero if config.dp > 1 else 0
    in_flight = sorted(buckets, key=lambda bucket: bucket.size)[-BUCKETS_IN_FLIGHT:]
    received = (
        config.dp - 2 if gloo else 0
    )  # besides the one that is received where the sum will be
    transient = (
        0,
        sum(received * bucket.segment for bucket in buckets),
        sum(bucket.size + (1 + received) * bucket.segment for bucket in in_flight),
    )
    shared = config.tp * SLOTS_PER_RANK * SLOT_BYTES if gloo and config.tp > 1 else 0
    return MemoryPlan(
        num_elements=elements,
        weights_bytes=weight_bytes * (buffers if zero else elements),
        gradients_bytes=gradient_bytes * (buffers, buffers + share, share)[zero],
        optimizer_bytes=state_bytes * (share if zero else elements),
        communication_bytes=gradient_bytes * transient[zero] + shared,
    )


def _cut_parameters(model: SupportsLayout, config: ParallelConfig) -> list[tuple[Cut, int]]:
    """Return what a rank holds of every parameter, and over how many tp ranks its gradient adds."""
    layout = model.layout()
    found = []
    for name, shape in model.parameter_shapes().items():
        rule = rule_of(name, layout)
        own = cut(shape, rule, config.tp, rank=0)
        found.append((own, _num_summed(rule, own, config)))
    return found


def _num_summed(rule: Rule, own: Cut, config: ParallelConfig) -> int:
    """Return how many tp ranks compute parts of one gradient: that of a copied head, of a norm."""
    if isinstance(rule, ShardRule):
        return own.replicas if rule.axis == "tp" else 1
    return config.tp if computes_part(rule, config.sequence_parallel) else 1


def _plan_buckets(
    parameters: list[tuple[Cut, int]], config: ParallelConfig, gradient_bytes: int
) -> list[FlatLayout]:
    """Lay out every bucket over the data-parallel ranks; its parameters are cut at rows."""
    kinds: dict[int, list[tuple[int, ...]]] = {}
    for own, num_summed in reversed(parameters):
        kinds.setdefault(num_summed, []).append(own.shape)
    found: list[FlatLayout] = []
    for shapes in kinds.values():
        limit = config.bucket_bytes // gradient_bytes
        tensors = [rows_of(shape) for shape in shapes]
        found += [layout for _, layout in plan_layouts(tensors, config.dp, limit)]
    return found
