"""Gradient clipping by a global norm that the caller has computed."""

import math
from collections.abc import Sequence

import torch

from mtron_optim.shards import Shard


@torch.no_grad()
def clip_(shards: Sequence[Shard], norm: torch.Tensor | float, max_norm: float | None) -> None:
    """Scale gradients in place so that their global 2-norm is at most `max_norm`.

    As in `torch.nn.utils.clip_grad_norm_`, the factor is `max_norm / (norm + 1e-6)`.

    Args:
        shards: whose gradients to scale; those without one are left out.
        norm: 2-norm of the whole gradient, over all processes.
        max_norm: the limit; none: only check.

    Raises:
        FloatingPointError: the norm is infinite or not a number; names the gradients here that
            are. Nothing is scaled.
    """
    value = float(norm)
    gradients = {s.name: s.tensor.grad for s in shards if s.tensor.grad is not None}
    if not math.isfinite(value):
        raise FloatingPointError(_describe(value, gradients))
    if max_norm is not None and value + 1e-6 > max_norm:
        torch._foreach_mul_(list(gradients.values()), max_norm / (value + 1e-6))


def _describe(norm: float, gradients: dict[str, torch.Tensor]) -> str:
    bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    if not bad:
        return (
            f"gradient norm: got {norm}, but each gradient here is finite; its squares overflow "
            "or another process has the cause; lower the learning rate"
        )
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return (
        f"gradient norm: got {norm}; the gradient of {bad[0]}{more} is not finite; lower the "
        "learning rate, lengthen the warm-up, or look at the batch of this step"
    )
