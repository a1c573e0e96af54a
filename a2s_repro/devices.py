"""Devices by the name that a user gives."""

import torch

from a2s_repro.errors import InputError


def usable_device(name: str) -> torch.device:
    """The device of that name. Raises InputError if it cannot be used here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"device {name} cannot be used ({reason}): choose cpu or another.") from None
    return device
