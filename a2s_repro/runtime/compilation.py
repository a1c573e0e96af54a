"""Compilation of a net with torch.compile, and execution with CUDA graphs."""

from collections.abc import Callable

import torch
from torch import Tensor

from a2s_repro.errors import InputError, first_line
from a2s_repro.models import Net, Prediction


def compiled(net: Net, device: torch.device, kernels: bool, graphs: bool) -> Callable[[Tensor], Prediction]:
    """A compiled callable of the net for training on images of one size; it shares the net's parameters and gradients.

    Args:
        kernels: whether inductor compiles the forward and backward operations to kernels.
        graphs: whether the compiled forward and backward are recorded as CUDA graphs and replayed (by torch), which
            read parameters and running statistics where they lie. Hooks on gradients, such as the sum over processes,
            run outside the graphs.

    Raises:
        InputError: graphs without a GPU or without `kernels`, or no compiler for kernels.
    """
    if graphs and device.type != "cuda":
        raise InputError(f"CUDA graphs need a GPU, but the device is {device}: leave out --cuda-graph.")
    if graphs and not kernels:
        # torch's graphs of uncompiled nets copy all parameters in every pass, and refuse running statistics
        raise InputError("CUDA graphs are made of compiled nets: add --compile to --cuda-graph.")
    if not kernels:
        return net
    _check_compiler(device)
    return torch.compile(net, dynamic=False, mode="reduce-overhead" if graphs else "default")


def _check_compiler(device: torch.device) -> None:
    try:
        torch.compile(torch.neg)(torch.ones(1, device=device))
    except RuntimeError as error:
        raise InputError(f"torch.compile does not work here ({first_line(error)}): leave out --compile.") from None
