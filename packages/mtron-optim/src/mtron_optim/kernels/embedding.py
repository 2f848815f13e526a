"""`nn.Embedding` whose backward gives the same bits in every run when compiled.

The compiler's own backward adds rows from several threads in any order.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

# Operators of our own, which the compiler calls instead of writing its form of them.
_LIBRARY = torch.library.Library("mtron_optim", "FRAGMENT")
_LIBRARY.define("embedding(Tensor weight, Tensor indices) -> Tensor")
_LIBRARY.define("embedding_backward(Tensor gradient, Tensor indices, int rows) -> Tensor")
_ANY_DEVICE = "CompositeExplicitAutograd"


@torch.library.impl(_LIBRARY, "embedding", _ANY_DEVICE)
def _embedding(weight: Tensor, indices: Tensor) -> Tensor:
    return torch.ops.aten.embedding(weight, indices)


@torch.library.impl(_LIBRARY, "embedding_backward", _ANY_DEVICE)
def _embedding_backward(gradient: Tensor, indices: Tensor, rows: int) -> Tensor:
    return torch.ops.aten.embedding_dense_backward(gradient, indices, rows, -1, False)


@torch.library.register_fake("mtron_optim::embedding", lib=_LIBRARY)
def _fake(weight: Tensor, indices: Tensor) -> Tensor:
    return weight.new_empty(*indices.shape, weight.shape[-1])


@torch.library.register_fake("mtron_optim::embedding_backward", lib=_LIBRARY)
def _fake_backward(gradient: Tensor, indices: Tensor, rows: int) -> Tensor:
    return gradient.new_empty(rows, gradient.shape[-1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    weight, indices = inputs
    ctx.save_for_backward(indices)
    ctx.rows = weight.shape[0]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    (indices,) = ctx.saved_tensors
    return torch.ops.mtron_optim.embedding_backward(gradient, indices, ctx.rows), None


torch.library.register_autograd(
    "mtron_optim::embedding", _backward, setup_context=_save, lib=_LIBRARY
)


def deterministic_embedding(indices: Tensor, weight: Tensor) -> Tensor:
    """Return rows of `weight` as `torch.nn.functional.embedding` does, with gradients.

    Args:
        indices: any shape, int64.
        weight: [rows, width].
    """
    return torch.ops.mtron_optim.embedding(weight, indices)


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
