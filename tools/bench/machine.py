"""What the machine can do: the yardstick of the benchmarks."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mtron_optim import measure_matmul_peak


@dataclass(frozen=True)
class Peak:
    """Rates of float32 matrix products in FLOP/s.

    Attributes:
        best: by the fastest library here.
        torch: by `torch.mm`.
    """

    best: float
    torch: float


def measure_peak(seconds: float) -> Peak:
    """Measure both rates with as many threads as torch uses."""
    best = measure_matmul_peak(torch.device("cpu"), torch.float32, seconds)
    return Peak(best, _torch_rate(seconds))


def _torch_rate(seconds: float) -> float:
    deadline, best = time.perf_counter() + seconds, float("inf")
    matrix = torch.full((1024, 1024), 1e-3)
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best


def describe(threads: int) -> str:
    """Return the processor, the threads, the load and the versions in one line."""
    cpu_info = Path("/proc/cpuinfo")
    model = platform.processor() or platform.machine()
    if cpu_info.exists():
        names = [s for s in cpu_info.read_text().splitlines() if s.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return (
        f"{model}, {os.cpu_count()} cores, {threads} threads, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
