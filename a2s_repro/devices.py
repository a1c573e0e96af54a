"""Devices by the name that a user gives."""

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
