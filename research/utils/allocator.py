"""The C library's allocator: memory that is freed is kept for the next allocation."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

TRIM_THRESHOLD: Final = -1  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
MMAP_THRESHOLD: Final = -3
KEPT: Final = 2**31 - 1
"""Bytes of free memory at the end of the heap that are kept; the largest value of ``mallopt``."""
MAPPED: Final = 2**30
"""Bytes from which an allocation is mapped on its own, and unmapped when it is freed."""
CHOSEN: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory of up to ``MAPPED`` bytes an allocation, in this process.

    By default it maps each allocation of more than 32 MiB (at first 128 KiB) on its own and unmaps
    it when it is freed, and the system clears the pages of the next one: activations and gradients
    of a step on a CPU, and batches of a store. With the memory kept, a training step takes 0.83 to
    0.97 of the time. The largest memory in use stays the same; what is free goes back when the
    process ends. Values are not affected. See ``docs/performance.md``.

    Returns:
        Whether it was set: not with another C library, nor where the environment chooses a value
        (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_MMAP_MAX_``,
        ``GLIBC_TUNABLES``).
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in CHOSEN):
        return False
    if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(TRIM_THRESHOLD, KEPT)) and bool(mallopt(MMAP_THRESHOLD, MAPPED))
