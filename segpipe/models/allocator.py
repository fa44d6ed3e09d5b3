"""What the allocator does with the memory that one batch frees and the next one asks for."""

from __future__ import annotations

import ctypes
import sys

# From glibc's malloc.h. What is larger than the largest threshold is mapped anew each time.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
_KEPT = 1 << 30
_GROWTH = 32 << 20


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, for the rest of the process (mallopt(3)); elsewhere nothing is done.

    By default each batch gives its memory back, and the next has it faulted in again page by page.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_TOP_PAD, _GROWTH)
