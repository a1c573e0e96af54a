"""A net whose passes take fewer, larger pieces of work: kernels made by torch.compile, and CUDA graphs."""

from collections.abc import Callable

import torch
from torch import Tensor

from a2s_repro.errors import InputError
from a2s_repro.models import Net, Prediction


def compiled(net: Net, device: torch.device, kernels: bool, graphs: bool) -> Callable[[Tensor], Prediction]:
    """The net as it is called in training, on images of one size; its parameters and their gradients stay the net's.

    Args:
        kernels: whether inductor makes kernels of its operations, forward and backward.
        graphs: whether forward and backward are each recorded as a CUDA graph and replayed, by torch's own machinery.
            What follows a gradient, as its sum over processes, stays outside.

    Raises:
        InputError: no GPU for graphs, or no compiler for kernels.
    """
    if graphs and device.type != "cuda":
        raise InputError(f"CUDA graphs are of GPUs, but the device is {device}: do without --cuda-graph.")
    if kernels:
        _check_compiler(device)
        return torch.compile(net, dynamic=False, mode="reduce-overhead" if graphs else "default")
    return torch.compile(net, dynamic=False, backend="cudagraphs") if graphs else net


def _check_compiler(device: torch.device) -> None:
    try:
        torch.compile(torch.neg)(torch.ones(1, device=device))
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"torch.compile does not work here ({reason}): do without --compile.") from None
