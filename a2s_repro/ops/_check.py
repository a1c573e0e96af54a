"""Argument checks of the public operators: one sentence with the operator, the argument, what was given and allowed."""

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_map(operator: str, argument: str, tensor: Tensor) -> None:
    """`tensor` is a floating (N, C, H, W) map with at least one channel and pixel; N may be 0."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{operator}: {argument} must be a Tensor, not {type(tensor).__name__}.")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{operator}: {argument} must be float32, float64, float16 or bfloat16, not {tensor.dtype}.")
    if tensor.dim() != 4 or (tensor.numel() == 0 and 0 in tensor.shape[1:]):
        raise ValueError(
            f"{operator}: {argument} must have shape (N, C, H, W) with C, H, W >= 1, not {tuple(tensor.shape)}."
        )


def check_size(operator: str, size: Sequence[int]) -> tuple[int, int]:
    """`size` is an output (height, width), both at least 1."""
    if len(size) != 2 or size[0] < 1 or size[1] < 1:
        raise ValueError(f"{operator}: size must be (height, width) with both >= 1, not {tuple(size)}.")
    return size[0], size[1]


def check_maps(operator: str, argument: str, tensors: Sequence[Tensor], *, same_channels: bool) -> None:
    """`tensors` is a non-empty list of maps of one dtype, device, batch size and, if asked, channel count."""
    if isinstance(tensors, Tensor) or len(tensors) == 0:
        raise ValueError(f"{operator}: {argument} must be a list of at least one (N, C, H, W) tensor.")
    for index, tensor in enumerate(tensors):
        name = f"{argument}[{index}]"
        check_map(operator, name, tensor)
        if index == 0:
            continue
        check_matches(operator, name, tensor, f"{argument}[0]", tensors[0])
        if same_channels and tensor.size(1) != tensors[0].size(1):
            raise ValueError(
                f"{operator}: {name} has {tensor.size(1)} channels, {argument}[0] has "
                f"{tensors[0].size(1)}; all must have the same number."
            )


def check_matches(operator: str, argument: str, tensor: Tensor, other_argument: str, other: Tensor) -> None:
    """`tensor` has the batch size and device of `other`, and its dtype unless autocast will bring them together."""
    if tensor.dtype == other.dtype and tensor.device == other.device and tensor.size(0) == other.size(0):
        return
    for what, given, wanted in (
        ("batch size", tensor.size(0), other.size(0)),
        ("device", tensor.device, other.device),
        ("dtype", tensor.dtype, other.dtype),
    ):
        if given != wanted and not (what == "dtype" and torch.is_autocast_enabled(tensor.device.type)):
            raise ValueError(f"{operator}: {argument} has {what} {given}, {other_argument} has {wanted}; give one.")
