"""The ends of a model cut by the vocabulary: embedding, output head, cross-entropy.

Each rank holds a run of the vocabulary's rows, the last ranks perhaps padded: rows beyond the
vocabulary are never looked up, and their logits never count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mtron_parallel.collectives import Group, gathered, summed
from mtron_parallel.cuts import Cut
from mtron_parallel.local import LocalParameter


class Passage(Protocol):
    """How activations enter and leave the products of a tensor-parallel group."""

    @property
    def group(self) -> Group:
        """The ranks that share each product."""
        ...

    def enter(self, x: Tensor) -> Tensor:
        """Let `x` enter products with cut columns."""
        ...

    def leave(self, x: Tensor) -> Tensor:
        """Sum partial results."""
        ...


def attach_embedding(
    name: str, module: nn.Embedding, local: LocalParameter, passage: Passage
) -> None:
    """Let every rank look up the tokens that it has, and sum.

    Args:
        name: of the module.
        module: holds this rank's rows.
        local: its weight.
        passage: where the sum goes.

    Raises:
        ValueError: it is cut along another dim, or does more than look up.
    """
    if local.dim != 0 or len(local.cut.blocks) > 1:
        raise ValueError(
            f"layout: {local.name} of an embedding can be cut in runs of its rows only, got "
            f"{local.rule}; use Shard(0, pad=True)"
        )
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        raise ValueError(
            f"{name}: an embedding that is cut takes no max_norm, scale_grad_by_freq or sparse, "
            f"got {module}; leave these out, or use Replicate for {local.name}"
        )
    first, count = _rows(local.cut)
    if module.padding_idx is not None:
        place = module.padding_idx - first
        module.padding_idx = place if 0 <= place < count else None
    foreign: list[Tensor] = []

    def localize(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor]:
        tokens = arguments[0] - first
        outside = (tokens < 0) | (tokens >= count)
        foreign.append(outside)
        return (tokens.masked_fill(outside, 0),)

    def combine(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        return passage.leave(output.masked_fill(foreign.pop()[..., None], 0))

    module.register_forward_pre_hook(localize)
    module.register_forward_hook(combine)


def attach_head(model: nn.Module, head: nn.Linear, local: LocalParameter, passage: Passage) -> None:
    """Let the loss be computed from each rank's part of the logits; called by itself, the head
    returns all logits.

    The loss is attached at `model.head_loss`, a module called with (head, hidden, labels) whose
    `op(logits, labels)` is the loss per token; without one the head always returns all logits.

    Args:
        model: whose head it is.
        head: holds this rank's rows.
        local: its weight.
        passage: where hidden states come from.

    Raises:
        ValueError: `model.head_loss` has no `op`, or one that cannot be divided.
    """
    vocab_size, group = local.global_shape[0], passage.group

    def enter(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (passage.enter(arguments[0]), *arguments[1:])

    def join(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        return _JoinVocabulary.apply(output, group, vocab_size)  # pyright: ignore[reportReturnType]

    head.register_forward_pre_hook(enter)
    head.register_forward_hook(join)
    loss: Any = getattr(model, "head_loss", None)
    if loss is None:
        return
    if not (hasattr(loss, "op") and hasattr(loss, "register_forward_pre_hook")):
        raise ValueError(
            f"head_loss: must be a module with the loss per token as its op(logits, labels), got "
            f"{loss!r}; without the attribute head_loss the head gives all logits"
        )

    def enter_loss(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        layer, hidden, *others = arguments
        assert layer is head, "the loss is computed with the model's own head"
        return (layer.forward, passage.enter(hidden), *others)  # forward: without the hooks above

    loss.register_forward_pre_hook(enter_loss)
    loss.op = vocabulary_cross_entropy(local.cut, group, vocab_size, loss_options(loss.op))


@dataclass(frozen=True)
class LossOptions:
    """What a loss per token does beyond the cross-entropy.

    Attributes:
        label_smoothing: share of the target that is spread evenly over the vocabulary.
        z_loss: weight of the square of the logarithm of the softmax's denominator.
        skips: whether tokens with a negative label have a loss of 0.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    skips: bool = False


def loss_options(op: Any) -> LossOptions:
    """Return what the loss `op` of a model does, so that a divided one can do the same.

    Args:
        op: a function called `cross_entropy` or `masked_lm`, or a `functools.partial` of one with
            the keywords `label_smoothing` and `z_loss`.

    Raises:
        ValueError: it is something else.
    """
    function, keywords = (op.func, op.keywords) if isinstance(op, partial) else (op, {})
    name = getattr(function, "__name__", None)
    positional = isinstance(op, partial) and op.args
    unknown = sorted(keywords.keys() - {"label_smoothing", "z_loss"})
    if name not in ("cross_entropy", "masked_lm") or positional or unknown:
        raise ValueError(
            "head_loss.op: over a vocabulary that is divided, only cross_entropy and masked_lm can "
            f"be computed, with label_smoothing and z_loss, got {op!r}; use one of these, or "
            "Replicate for the head"
        )
    return LossOptions(**keywords, skips=name == "masked_lm")


def vocabulary_cross_entropy(
    cut: Cut, group: Group, vocab_size: int, options: LossOptions = LossOptions()
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a cross-entropy over logits that are divided by the vocabulary.

    Args:
        cut: which rows of the vocabulary this rank has.
        group: the ranks that have all of them.
        vocab_size: how many there are.
        options: what it does beyond that.

    Returns:
        `(logits [tokens, local rows], labels [tokens]) -> loss [tokens]` in nats, at least fp32.
    """
    rows = _Rows(*_rows(cut), vocab_size)

    def op(logits: Tensor, labels: Tensor) -> Tensor:
        losses: Any = _CrossEntropy.apply(logits, labels, group, rows, options)
        return losses.masked_fill(labels < 0, 0.0) if options.skips else losses

    return op


class _Rows(NamedTuple):
    """The rows of the vocabulary that a rank has: the first, how many, and how many there are."""

    first: int
    held: int
    total: int


class _CrossEntropy(torch.autograd.Function):
    """-log softmax(logits)[label], with the largest logit, the sum and the label's logit reduced.

    With smoothing the target has `1 - label_smoothing` of the label's logit and the rest of the
    mean of all logits. Reference: Shoeybi et al., arXiv:1909.08053, section 3 (fused with the
    output embedding).
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, group: Group, rows: _Rows, options: LossOptions
    ) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        values = logits[:, : rows.held].to(dtype)
        largest = values.new_full((len(labels),), -torch.inf)
        if rows.held:
            largest = values.amax(dim=-1)
        largest = summed(largest, group, maximum=True)
        values = values - largest[:, None]
        here = (labels >= rows.first) & (labels < rows.first + rows.held)
        own = (labels - rows.first).masked_fill(~here, 0)
        target = torch.zeros_like(largest)
        if rows.held:
            target = values.gather(1, own[:, None])[:, 0].masked_fill(~here, 0)
        if options.label_smoothing:
            spread = options.label_smoothing / rows.total
            target = target * (1 - options.label_smoothing) + spread * values.sum(dim=-1)
        values.exp_()
        sums = summed(torch.stack((values.sum(dim=-1), target)), group)
        logarithm = sums[0].log()
        ctx.save_for_backward(values.div_(sums[0][:, None]), own, here, largest + logarithm)
        ctx.rows, ctx.options = rows, options
        ctx.width, ctx.dtype = logits.shape[1], logits.dtype
        losses = logarithm - sums[1]
        if options.z_loss:
            losses = losses + options.z_loss * (largest + logarithm).square()
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, None, None]:
        softmax, own, here, logsumexp = ctx.saved_tensors
        (outer,) = gradients
        options, smoothing = ctx.options, ctx.options.label_smoothing
        gradient = softmax * (outer * (1 + 2 * options.z_loss * logsumexp))[:, None]
        if softmax.shape[1]:
            at_label = -(1 - smoothing) * (outer * here)
            gradient.scatter_add_(1, own[:, None], at_label[:, None])
            if smoothing:
                gradient -= (outer * (smoothing / ctx.rows.total))[:, None]
        padding = ctx.width - softmax.shape[1]
        if padding:
            gradient = torch.nn.functional.pad(gradient, (0, padding))
        return gradient.to(ctx.dtype), None, None, None, None


class _JoinVocabulary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, group: Group, total: int) -> Tensor:
        ctx.group, ctx.width = group, logits.shape[-1]
        parts = gathered(logits.contiguous(), group)
        return parts.movedim(0, -2).flatten(-2)[..., :total].contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        missing = ctx.group.size * ctx.width - gradient.shape[-1]
        gradient = torch.nn.functional.pad(gradient, (0, missing))
        start = ctx.group.rank * ctx.width
        return gradient[..., start : start + ctx.width], None, None


def _rows(cut: Cut) -> tuple[int, int]:
    """Return the first row of the vocabulary that a rank has, and how many it has."""
    if not cut.blocks:
        return 0, 0
    (block,) = cut.blocks
    return block.offset[0], block.shape[0]
