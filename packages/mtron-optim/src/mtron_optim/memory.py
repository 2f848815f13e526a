"""How the process handles memory that a training step frees and the next one needs again."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_NEVER = -1
_GIB = 1 << 30


def keep_freed_memory() -> bool:
    """Keep freed memory in the process instead of handing it back to the operating system.

    By default glibc maps every large tensor anew, and the system clears each of its pages at the
    first touch; for a small model on CPU that is up to a sixth of a compiled step. It holds for
    the whole process from now on: its memory no longer shrinks, its peak stays the same.

    Returns:
        Whether it was done: on Linux with glibc. Other systems are left as they are.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _GIB)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
