"""`nn.Linear` by oneDNN: the module, its name, parameters and hooks stay."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from mtron_optim.kernels.products import onednn_is_available, onednn_is_faster, onednn_product

# Smaller weights gain nothing: what the call costs in Python outweighs the faster product.
_LEAST_ELEMENTS = 8192

# An operator of its own, because the compiler would make both operands of torch's contiguous.
_LIBRARY = torch.library.Library("mtron_optim", "FRAGMENT")
_LIBRARY.define("linear(Tensor input, Tensor weight) -> Tensor")
_LIBRARY.impl("linear", lambda input, weight: onednn_product(input, weight.mT), "CPU")


@torch.library.register_fake("mtron_optim::linear", lib=_LIBRARY)
def _fake(input: Tensor, weight: Tensor) -> Tensor:
    return input.new_empty(input.shape[0], weight.shape[0])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    input, weight = ctx.saved_tensors
    linear = torch.ops.mtron_optim.linear
    return (
        linear(gradient, weight.mT) if ctx.needs_input_grad[0] else None,
        linear(gradient.mT, input.mT) if ctx.needs_input_grad[1] else None,
    )


torch.library.register_autograd("mtron_optim::linear", _backward, setup_context=_save, lib=_LIBRARY)


def onednn_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `input @ weight.T + bias` as `torch.nn.functional.linear` does, with gradients.

    Args:
        input: [..., in], float32 on CPU.
        weight: [out, in].
        bias: [out], or none.
    """
    flat = torch.ops.mtron_optim.linear(input.reshape(-1, input.shape[-1]), weight)
    output = flat.view(*input.shape[:-1], weight.shape[0])
    return output if bias is None else output + bias


def attach_onednn(model: nn.Module, choice: str) -> int:
    """Let the linear layers of `model` multiply by oneDNN.

    Args:
        model: with weights in place, not on the meta device.
        choice: `auto` takes those for which it is faster, `onednn` all, `torch` none.

    Returns:
        How many layers were changed.

    Raises:
        ValueError: `onednn` was asked for, and a layer cannot have it.
    """
    changed = 0
    for name, module in model.named_modules():
        if type(module) is not nn.Linear or choice == "torch":
            continue
        device, dtype = module.weight.device, module.weight.dtype
        if choice == "auto" and not (
            onednn_is_faster(device, dtype) and module.weight.numel() >= _LEAST_ELEMENTS
        ):
            continue
        if device.type != "cpu" or dtype != torch.float32 or not onednn_is_available():
            raise ValueError(
                f"kernels.matmul: 'onednn' multiplies float32 on CPU where torch has it, got "
                f"{name} in {dtype} on {device}; use 'auto'"
            )
        module.forward = MethodType(_forward, module)
        changed += 1
    return changed


def _forward(self: nn.Linear, input: Tensor) -> Tensor:
    if input.dtype != self.weight.dtype or torch.is_autocast_enabled("cpu"):
        return nn.functional.linear(input, self.weight, self.bias)
    return onednn_linear(input, self.weight, self.bias)
