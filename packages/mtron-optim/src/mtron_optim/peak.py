"""What the machine reaches in matrix products: the yardstick for a training step."""

import time
from collections.abc import Callable

import torch

from mtron_optim.kernels.products import onednn_is_available, onednn_product

_SIZES = {"cpu": (256, 512, 1024), "cuda": (2048, 4096, 8192)}


def measure_matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Return the best rate of square matrix products over a few sizes, in FLOP/s.

    Everything that mtron may multiply with is tried (torch's product, and oneDNN on CPU), so
    that the share of this peak which a training step reaches stays below 1.

    Args:
        device: where to multiply; on CPU with as many threads as torch uses.
        dtype: of the matrices.
        seconds: about how long to measure.
    """
    products: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [torch.mm]
    if device.type == "cpu" and dtype == torch.float32 and onednn_is_available():
        products.append(onednn_product)
    sizes = _SIZES.get(device.type, _SIZES["cuda"])
    deadline, best = time.perf_counter() + seconds, 0.0
    while True:
        for size in sizes:
            matrix = torch.full((size, size), 1e-3, device=device).to(dtype)
            for product in products:
                best = max(best, 2 * size**3 / _fastest_call(product, matrix))
        if time.perf_counter() > deadline:
            return best


def _fastest_call(
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], matrix: torch.Tensor
) -> float:
    """Return the least seconds of a few calls."""
    best = float("inf")
    for _ in range(4):
        _synchronize(matrix.device)
        started = time.perf_counter()
        product(matrix, matrix)
        _synchronize(matrix.device)
        best = min(best, time.perf_counter() - started)
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
