"""Sets how the C library manages freed memory."""

import ctypes

# glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Keeps memory that was freed for the next use, where the C library is glibc.

    Otherwise each large tensor is taken from the system and given back, which clears its pages
    one by one: half of the time of a training step on a virtual machine. The process then
    holds the most memory that it has used until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
