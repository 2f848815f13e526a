"""Muon for whole matrices, fast on CPU as well."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mtron_optim.config import MuonConfig
from mtron_optim.kernels.products import onednn_is_faster, onednn_product
from mtron_optim.newton_schulz import orthogonalize, polynomials

# Matrices of one shape are stacked, so that small ones keep the machine busy, up to this many
# elements at a time, so that large ones do not double the memory.
_STACK_ELEMENTS = 1 << 25

# On CPU with oneDNN, which multiplies single matrices, stacks serve only below this shorter side.
_LOOP_FROM = 128


class Muon(Optimizer):
    """Momentum whose matrices are made orthogonal; equal to `torch.optim.Muon` but for rounding.

    Reference: Jordan et al., "Muon", 2024; scale `match_rms_adamw`: Liu et al.,
    arXiv:2502.16982, eq. 4.

    Args:
        params: 2-D parameters, or groups of them; with names or not.
        lr: learning rate.
        weight_decay: decoupled; the factor is `1 - lr * weight_decay`.
        config: everything else; its own `lr`, `weight_decay` and `exclude` are for
            `build_optimizer` and not looked at here.

    Raises:
        ValueError: a parameter is not 2-D.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        config: MuonConfig | None = None,
    ) -> None:
        config = config or MuonConfig()
        settings = config.model_dump(exclude={"lr", "weight_decay", "exclude"})
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **settings})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(
                        f"Muon: takes matrices, got a parameter of shape {tuple(parameter.shape)};"
                        " give it to AdamW"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all parameters that have a gradient.

        Args:
            closure: computes the gradients anew and returns the loss.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for batch in _batches(p for p in group["params"] if p.grad is not None):
                self._update(batch, group)
        return loss

    def _update(self, batch: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters of one shape, dtype and device."""
        gradients = [p.grad for p in batch if p.grad is not None]
        means = [self._momentum(p) for p in batch]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        momenta = (
            torch._foreach_lerp(gradients, means, group["momentum"]) if group["nesterov"] else means
        )
        updates = _orthogonal(momenta, group)
        lr, decay = group["lr"], group["weight_decay"]
        if decay:
            torch._foreach_mul_(batch, 1 - lr * decay)
        step_size = lr * _scale(batch[0].shape, group["scale"])
        for parameter, update in zip(batch, updates, strict=True):
            parameter.add_(update.to(parameter.dtype), alpha=-step_size)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def _orthogonal(momenta: "list[Tensor] | tuple[Tensor, ...]", group: dict[str, Any]) -> Tensor:
    """Return the orthogonalized momenta as one stack [matrices, rows, columns] or [rows, ...]."""
    dtype = _iteration_dtype(momenta[0], group["dtype"])
    steps = polynomials(group["coefficients"], group["iterations"])
    if len(momenta) == 1:
        matrix = momenta[0].to(dtype)
        product = onednn_product if onednn_is_faster(matrix.device, dtype) else torch.mm
        return orthogonalize(matrix, steps, group["eps"], product)[None]
    return orthogonalize(torch.stack(list(momenta)).to(dtype), steps, group["eps"])


def _batches(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the parameters in lists of one kind that are worth doing at once."""
    kinds: defaultdict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        kinds[parameter.shape, parameter.dtype, parameter.device].append(parameter)
    for same in kinds.values():
        count = _batch_size(same[0])
        for start in range(0, len(same), count):
            yield same[start : start + count]


def _batch_size(parameter: Tensor) -> int:
    if min(parameter.shape) >= _LOOP_FROM and onednn_is_faster(parameter.device, parameter.dtype):
        return 1
    return max(1, _STACK_ELEMENTS // max(1, parameter.numel()))


def _iteration_dtype(tensor: Tensor, choice: str) -> torch.dtype:
    if tensor.dtype == torch.float64:
        return torch.float64
    if choice == "auto":
        return torch.bfloat16 if tensor.is_cuda else torch.float32
    return torch.bfloat16 if choice == "bfloat16" else torch.float32


def _scale(shape: torch.Size, rule: str) -> float:
    rows, columns = shape
    if rule == "original":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))
