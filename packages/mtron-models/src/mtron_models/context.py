"""What a forward pass needs to know next to its inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RandomKey:
    """What the random numbers of a training step depend on, next to their place in the model.

    Tensors, so that a compiled model is not compiled again when they change.

    Attributes:
        seed: of the run.
        step: optimizer step, int64 scalar; an int is turned into one.
        sample_ids: global index of the sample in each row, int64 `[batch]`.
        token_index: place of each token in its sample, int64 `[batch, seq]` or `[seq]`; None
            where the rows hold whole samples. Whoever splits rows along the sequence gives it.
    """

    seed: int
    step: Tensor | int
    sample_ids: Tensor
    token_index: Tensor | None = None

    def __post_init__(self) -> None:
        if isinstance(self.step, int):
            step = torch.tensor(self.step, device=self.sample_ids.device)
            object.__setattr__(self, "step", step)


@dataclass(frozen=True, eq=False)
class FurtherLabels:
    """What a model that predicts several tokens at once trains on, beyond the next tokens.

    The loader shifts, as it does for the labels of the next tokens; no model does.

    Attributes:
        labels: int64 `[batch, seq, K]`: the tokens 2, 3, ... places after each one; a valid token
            also where it does not count.
        factors: `[batch, seq, K]`: by what the loss of each counts, relative to the place's weight
            in `train_loss`; 0 where the token lies in another document or beyond the end, else
            for DeepSeek-V3 0.3 / K, in the last third of its training 0.1 / K.
    """

    labels: Tensor
    factors: Tensor


def _all_here(name: str, tensor: Tensor, over: Literal["sequence"]) -> Tensor:
    """Return a sum over all ranks that hold tokens of the same rows: there is only this one."""
    del name, over
    return tensor


def _no_report(name: str, value: Tensor) -> None:
    """Do nothing with what a layer reports."""
    del name, value


class Report:
    """Collects what the layers of a model report in one forward pass; a fresh one for each.

    Give it to the context as `report`. Whoever computes a block again in the backward gives it a
    context without one then.

    Attributes:
        values: tensors without gradients by name, such as `layers.0.mlp.router.counts`.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def __call__(self, name: str, value: Tensor) -> None:
        """Keep a value."""
        self.values[name] = value


@dataclass(frozen=True, eq=False)
class Context:
    """What a forward pass needs to know next to its inputs; every part may be left out.

    A frozen dataclass that is not a pytree, so that pipelines hand it on whole.

    Attributes:
        positions: position of each token, rotary or learned, int64 `[batch, seq]` or `[seq]`;
            None means 0, 1, ... in every row.
        cu_seqlens: where documents begin and end in the flattened batch, int32 or int64
            `[documents + 1]`, from 0 to batch * seq. Tokens then attend within their document.
        max_seqlen: tokens in the longest document, for attention cores that must know it.
        memory_cu_seqlens: the same as `cu_seqlens` for the other sequence of cross-attention, in
            an encoder-decoder model: tokens of document `k` attend to its document `k`.
        token_types: the segment that each token belongs to, int64 `[batch, seq]`, for models that
            know segments (BERT); None means 0 everywhere.
        random: what dropout depends on; needed for training with dropout.
        further_labels: needed for training with multi-token prediction. In the context, because
            that reaches every stage of a pipeline.
        caches: whatever an attached attention core keeps between calls, such as keys and values.
        auxiliary_weight: 1 / (rows of the global batch), times the loss scale if there is one:
            what each row's auxiliary losses are multiplied by while training (the balancing
            losses of mixtures of experts). None for no auxiliary losses.
        reduce: `reduce(name, tensor, "sequence")` returns the sum of a statistic over all ranks
            that hold other tokens of the same rows; it is not differentiated.
        report: `report(name, value)` takes statistics of a training step, without gradient.
    """

    positions: Tensor | None = None
    cu_seqlens: Tensor | None = None
    max_seqlen: int | None = None
    memory_cu_seqlens: Tensor | None = None
    token_types: Tensor | None = None
    random: RandomKey | None = None
    further_labels: FurtherLabels | None = None
    caches: Any = None
    auxiliary_weight: Tensor | float | None = None
    reduce: Callable[[str, Tensor, Literal["sequence"]], Tensor] = _all_here
    report: Callable[[str, Tensor], None] = _no_report
