"""How training gets its memory: what it frees it keeps, since each step asks for the same large tensors again.

glibc gives large blocks back to the system at once, and the next step gets them as fresh pages, which the kernel clears
one by one while the caches lose what they held.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h; mallopt(3)
KEPT = 2**30  # bytes: a larger block still comes from the system, and more than this at the heap's end goes back to it


def keep_freed_memory() -> None:
    """From now on, in this process and those forked from it; nothing happens where the C library is not glibc."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, KEPT)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
