"""What a forward pass needs to know next to its inputs."""

from dataclasses import dataclass
from typing import Any

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
class Context:
    """What a forward pass needs to know next to its inputs; every part may be left out.

    A frozen dataclass that is not a pytree, so that pipelines hand it on whole.

    Attributes:
        positions: position of each token for the rotary embedding, int64 `[batch, seq]`; None
            means 0, 1, ... in every row.
        cu_seqlens: where documents begin and end in the flattened batch, int32 or int64
            `[documents + 1]`, from 0 to batch * seq. Tokens then attend within their document.
        max_seqlen: tokens in the longest document, for attention cores that must know it.
        random: what dropout depends on; needed for training with dropout.
        caches: whatever an attached attention core keeps between calls, such as keys and values.
    """

    positions: Tensor | None = None
    cu_seqlens: Tensor | None = None
    max_seqlen: int | None = None
    random: RandomKey | None = None
    caches: Any = None
