"""`nn.Embedding` whose backward gives the same bits in every run when compiled.

The compiler's own backward adds rows from several threads in any order.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

_LIBRARY = torch.library.Library("mtron_optim", "FRAGMENT")
_LIBRARY.define("embedding_backward(Tensor gradient, Tensor indices, int rows) -> Tensor")


@torch.library.impl(_LIBRARY, "embedding_backward", "CompositeExplicitAutograd")
def _embedding_backward(gradient: Tensor, indices: Tensor, rows: int) -> Tensor:
    return torch.ops.aten.embedding_dense_backward(gradient, indices, rows, -1, False)


@torch.library.register_fake("mtron_optim::embedding_backward", lib=_LIBRARY)
def _fake(gradient: Tensor, indices: Tensor, rows: int) -> Tensor:
    return gradient.new_empty(rows, gradient.shape[-1])


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.rows = weight.shape[0]
        return nn.functional.embedding(indices, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        return torch.ops.mtron_optim.embedding_backward(gradients[0], indices, ctx.rows), None


def deterministic_embedding(indices: Tensor, weight: Tensor) -> Tensor:
    """Return rows of `weight` as `torch.nn.functional.embedding` does, with gradients.

    Args:
        indices: any shape, int64.
        weight: [rows, width].
    """
    return _Embedding.apply(weight, indices)


def attach_deterministic_embedding(model: nn.Module) -> int:
    """Give the plain embeddings of `model` that backward; returns how many there are."""
    changed = 0
    for module in model.modules():
        if type(module) is not nn.Embedding or module.sparse or module.scale_grad_by_freq:
            continue
        if module.padding_idx is None and module.max_norm is None:
            module.forward = MethodType(_forward, module)
            changed += 1
    return changed


def _forward(self: nn.Embedding, input: Tensor) -> Tensor:
    return deterministic_embedding(input, self.weight)
