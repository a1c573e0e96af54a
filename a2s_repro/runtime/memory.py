"""Settings of this process's memory. They must be made before torch allocates its first tensor."""

import ctypes
import os


def keep_freed_memory() -> None:
    """Keeps freed memory for the next allocation, and lets torch ask for large tensors in pages of 2 MB.

    A net allocates maps of the same sizes over and over. glibc returns large ones to the system, which clears every
    page before it hands it out again: 3 to 11 % of the time of an update or a segmentation (docs/training.md, "Speed").
    Peak memory stays as it was. Does nothing where the C library has no `mallopt`.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, -1)  # never
