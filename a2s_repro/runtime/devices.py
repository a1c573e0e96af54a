"""Devices by the name that a user gives, and their memory."""

import ctypes
import resource

import torch

from a2s_repro.errors import InputError


def usable_device(name: str | torch.device) -> torch.device:
    """The device of that name. Raises InputError if it cannot be used here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"device {name} cannot be used ({reason}): choose cpu or another.") from None
    return device


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch has allocated on a GPU so far, or that this process has held on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def keep_freed_memory() -> None:
    """Has this process keep the memory that it frees on the CPU, for what it allocates next.

    A net asks for maps of the same sizes again and again. In between glibc returns large ones to the system, which
    clears every page before it gives it once more: 3 to 11 % of the time of an update or a segmentation
    (docs/training.md, "Speed"). Peak memory stays as it was. Does nothing where the C library has no `mallopt`.
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, -1)  # never
