"""Many processes at one task, as torchrun starts them. In a single process all of this does nothing."""

import os

import torch
import torch.distributed as dist
from torch import Tensor

from a2s_repro.errors import InputError


def initialise(device: str = "cpu") -> str:
    """Joins the processes that torchrun started; returns the device of this one, of which each has its own GPU.

    Sums go over NCCL where the tensors are on GPUs, over gloo where they are not. Raises InputError if the others do
    not answer.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return device
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
        except RuntimeError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(f"the processes of the run do not find each other ({reason}).") from None
    return device


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def sum_(tensor: Tensor) -> Tensor:
    """Sums a tensor over the processes, in place, and returns it; all must call it with the same shape and dtype."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor
