import platform
import subprocess
import sys
import time

import pytest
import torch

from mtron_optim import measure_matmul_peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_peak_is_at_least_what_a_product_reaches(dtype):
    matrix = torch.ones(512, 512, dtype=dtype)
    started = time.perf_counter()
    for _ in range(3):
        torch.mm(matrix, matrix)
    reached = 3 * 2 * 512**3 / (time.perf_counter() - started)
    peak = measure_matmul_peak(torch.device("cpu"), dtype, seconds=0.3)
    assert peak > 0.5 * reached  # other programs run as well
    assert 1e8 < peak < 1e15


CODE = """
import resource, torch
from mtron_optim import keep_freed_memory
def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = page_faults()
assert keep_freed_memory()
page_faults()
print(first, page_faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_kept_memory_is_not_mapped_again():
    """In a process of its own, because it holds for the whole process."""
    output = subprocess.run(
        [sys.executable, "-c", CODE], check=True, capture_output=True, text=True, timeout=60
    )
    mapped, kept = [int(word) for word in output.stdout.split()]
    assert kept < 0.2 * mapped
