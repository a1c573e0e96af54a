"""Layers of all nets: the convolution and Caffe's dropout; shared filters; names in state dicts."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from a2s_repro.ops.conv2d import Filters, conv2d

Masks = Callable[[torch.Size, float], Tensor]
"""Shape and drop ratio -> bool tensor of that shape, true where an element is kept."""


class Conv2d(nn.Conv2d):
    """A convolution whose padding keeps the size, in the form that is fastest; with a stride it is torch's."""

    filters: Filters | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.stride != (1, 1):
            return super().forward(x)
        return conv2d(x, self.filters or self.weight, self.bias, self.dilation[0])


@contextmanager
def shared_filters(net: nn.Module) -> Iterator[None]:
    """Within the block, layers that run several times share what is made of their weights (`Filters`)."""
    layers = [] if torch.compiler.is_compiling() else [each for each in net.modules() if isinstance(each, Conv2d)]
    for layer in layers:
        layer.filters = Filters(layer.weight)
    try:
        yield
    finally:
        for layer in layers:
            layer.filters = None


class Dropout(nn.Dropout):
    """Caffe's Dropout: single elements, x * mask / (1 - ratio) in training, which is nn.Dropout.

    The batch consists of as many passes as there are `masks`, each of which draws the masks of its images, in the order
    in which the layers run. Without `masks` torch draws: on a GPU by its own dropout, on the CPU by `random_mask`.
    """

    masks: Sequence[Masks] = ()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.masks:
            kept = [masks(part.shape, self.p) for masks, part in zip(self.masks, x.chunk(len(self.masks)), strict=True)]
            kept = [mask.to(x.device, non_blocking=True) for mask in kept]
            return x * (torch.cat(kept) if len(kept) > 1 else kept[0]) * (1 / (1 - float(np.float32(self.p))))
        if self.training and x.device.type == "cpu":
            return x * random_mask(x.shape, self.p).to(x.dtype).div_(1 - self.p)
        return super().forward(x)


def random_mask(
    shape: torch.Size, ratio: float, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> Tensor:
    """A mask of maps (N, C, h, w), in channels_last: false with probability `ratio`, to the nearest 1/65536.

    Drawn as 16-bit numbers, which takes a thirteenth of the time of torch's bernoulli numbers on the CPU.
    """
    n, channels, height, width = shape
    words = torch.empty(-(-shape.numel() // 4), dtype=torch.int64, device=device)
    numbers = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: shape.numel()]
    return numbers.ge(round(ratio * 65536) - 32768).view(n, height, width, channels).permute(0, 3, 1, 2)


class SeededMasks:
    """The masks of one pass, drawn by torch's generator of a device from a seed."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, shape: torch.Size, ratio: float) -> Tensor:
        return random_mask(shape, ratio, self._generator.device, self._generator)


def take_masks_from(model: nn.Module, *passes: Masks) -> None:
    """Lets all dropout layers of a net draw their masks from `passes`, the passes of which its batches consist."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.masks = passes


def leave_out_of_state_dict(net: nn.Module, child: str) -> None:
    """Leaves the name of a child, which must be the last, out of the keys of the net's state dict.

    With child "head" the parameter `head.att_fc.weight` has the key `att_fc.weight`, the name of Caffe's layer.
    """
    net.register_state_dict_post_hook(functools.partial(_shorten_keys, child))
    net.register_load_state_dict_pre_hook(functools.partial(_lengthen_keys, child))


def _shorten_keys(child: str, net: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    long = f"{prefix}{child}."
    for key in [key for key in state_dict if key.startswith(long)]:
        state_dict[prefix + key.removeprefix(long)] = state_dict.pop(key)


def _lengthen_keys(child: str, net: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in net.get_submodule(child).state_dict():
        if prefix + key in state_dict:
            state_dict[f"{prefix}{child}.{key}"] = state_dict.pop(prefix + key)
