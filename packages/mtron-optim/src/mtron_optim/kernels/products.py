"""Matrix products on the CPU by the faster library.

For float32, `torch.mm` calls MKL, which keeps to AVX2 on processors that are not Intel's. oneDNN,
which is in torch as well, uses AVX-512 wherever it exists: 2.2 times faster on a Zen 5 core, with
the same float32 arithmetic. torch has no switch for it, but its operator for fused linears takes
any two strided matrices.
"""

import platform

import torch
from torch import Tensor


def onednn_is_available() -> bool:
    """Return whether this torch can multiply by oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether `onednn_product` is the better choice for such tensors.

    It depends on the processor only, so that a run on one machine always chooses the same.
    """
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and platform.machine() in ("x86_64", "AMD64")
        and onednn_is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    )


def onednn_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of two matrices by oneDNN, without autograd.

    Args:
        left: [m, k], on CPU, any strides.
        right: [k, n], of the same dtype, any strides.

    Returns:
        [m, n], contiguous.
    """
    if left.numel() == 0 or right.numel() == 0:
        return torch.mm(left, right)  # oneDNN takes no empty matrices
    if left.is_contiguous() or left.numel() <= _elements_copied_if_transposed(left, right):
        return _multiply(left, right)
    return _multiply(right.mT, left.mT).mT.contiguous()


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    """Multiply; `left` is copied if it is not contiguous."""
    return torch.ops.mkldnn._linear_pointwise(left, right.mT, None, "none", [], "")


def _elements_copied_if_transposed(left: Tensor, right: Tensor) -> int:
    copied = 0 if right.mT.is_contiguous() else right.numel()
    return copied + left.shape[0] * right.shape[1]
