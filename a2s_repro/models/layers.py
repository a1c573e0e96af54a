"""Layers of all nets: the convolution and Caffe's dropout; shared filters; names in state dicts."""

import functools
from collections.abc import Callable, Iterator
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

    With `masks` they are asked for, in the order in which the layers run; without, torch draws them: on a GPU by its
    own dropout, on the CPU by 16-bit random numbers, which it draws there 13 times as fast as bernoulli numbers.
    """

    masks: Masks | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.masks is not None:
            kept = self.masks(x.shape, self.p).to(x.device, non_blocking=True)
            return x * kept * (1 / (1 - float(np.float32(self.p))))
        if self.training and x.device.type == "cpu":
            return x * _random_factors(x, self.p)
        return super().forward(x)


def _random_factors(x: Tensor, ratio: float) -> Tensor:
    """For every element of x 0, with probability `ratio` to the nearest 1/65536, or 1 / (1 - ratio)."""
    strides = torch.empty_like(x, device="meta").stride()
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    numbers = words.view(torch.int16).as_strided(x.shape, strides)
    return numbers.ge(round(ratio * 65536) - 32768).to(x.dtype).div_(1 - ratio)


def take_masks_from(model: nn.Module, masks: Masks) -> None:
    """Lets all dropout layers of a net ask `masks`."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.masks = masks


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
