"""Devices and their memory."""

import errno
import resource
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from a2s_repro.errors import InputError, first_line


def usable_device(name: str | torch.device) -> torch.device:
    """The device with this name. Raises InputError if it is not available."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise InputError(f"device {name} cannot be used ({first_line(error)}): choose cpu or another.") from None
    return device


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes so far: torch's allocations on a GPU, or the resident set of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short: NumPy's, the system's, or torch's on a GPU or on the CPU."""
    of_torch = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")  # what has no type of its own
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in of_torch))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    )


@contextmanager
def fitting_in_memory(what: str, remedy: str) -> Iterator[None]:
    """Turns a lack of memory in the block into an InputError, and frees what the block held.

    Args:
        what: the subject of the sentence.
        remedy: its end, in the imperative.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        raise InputError(f"{what} needs more memory than there is: {remedy}.") from error
