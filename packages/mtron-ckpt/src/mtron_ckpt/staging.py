"""The buffers in which arrays wait to be written: allocated once, used by every save."""

import mmap
from threading import Condition

from mtron_ckpt.layout import PAGE_BYTES, WINDOW_BYTES

BUFFER_BYTES = WINDOW_BYTES + 2 * PAGE_BYTES
"""A buffer holds a window that begins anywhere within a page."""


class StagingPool:
    """A set of equal buffers that grows to what one save needs and is then reused.

    Args:
        limit_bytes: most memory that the pool may hold; when it is used up, `acquire` waits for
            the writer to give a buffer back, so a save is then not finished sooner than all but
            the last `limit_bytes` are written. None lets the pool hold a whole checkpoint.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        if limit_bytes is not None and limit_bytes < BUFFER_BYTES:
            raise ValueError(
                f"limit_bytes: too small for one buffer, got {limit_bytes}; "
                f"use at least {BUFFER_BYTES}"
            )
        self._limit = None if limit_bytes is None else limit_bytes // BUFFER_BYTES
        self._free: list[mmap.mmap] = []
        self._count = 0
        self._changed = Condition()

    @property
    def limited(self) -> bool:
        """Whether `acquire` may have to wait."""
        return self._limit is not None

    @property
    def allocated_bytes(self) -> int:
        """Memory that the pool holds, in use or not."""
        return self._count * BUFFER_BYTES

    def acquire(self) -> mmap.mmap:
        """Take a buffer, waiting for one where the limit is reached."""
        with self._changed:
            while not self._free and self._limit is not None and self._count >= self._limit:
                self._changed.wait()
            if self._free:
                return self._free.pop()
            buffer = mmap.mmap(-1, BUFFER_BYTES)
            if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux: a tenth of the page faults
                buffer.madvise(mmap.MADV_HUGEPAGE)
            self._count += 1
            return buffer

    def release(self, buffer: mmap.mmap) -> None:
        """Give a buffer back."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify()

    def clear(self) -> None:
        """Free the buffers that are not in use."""
        with self._changed:
            self._count -= len(self._free)
            self._free.clear()
            self._changed.notify_all()
