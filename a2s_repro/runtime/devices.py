"""Devices and their memory."""

import errno
import resource
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from a2s_repro.errors import InputError, first_line


def usable_device(name: str | torch.device) -> torch.device:
    """The device with this name. Raises InputError if it is not available."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise InputError(f"device {name} cannot be used ({first_line(error)}): choose cpu or another.") from None
    return device


class Uploader:
    """Copies tensors to a device; to a GPU on a stream of its own, so that it works while they are copied.

    Only from pinned memory does the host not wait for the copies. Later work on the current stream waits for them.
    """

    def __init__(self, device: str | torch.device) -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        if self._stream is None:
            return [tensor.to(self._device) for tensor in tensors]
        with torch.cuda.stream(self._stream):
            copies = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(current)
        return copies


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Names the block in profiles: torch's, and where there is a GPU also in NVIDIA's tools (an NVTX range)."""
    ranges = torch.cuda.nvtx.range(name) if torch.cuda.is_available() else nullcontext()
    with torch.profiler.record_function(name), ranges:
        yield


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
