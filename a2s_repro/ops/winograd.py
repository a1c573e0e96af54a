"""3x3 convolutions by Winograd's minimal filtering, which takes 16 multiplications where the definition takes 36.

F(2x2, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, whose formulas are in
`csrc/winograd/winograd.h`. Its sums have a ninth of the terms, so in float32 it is nearer to the exact result than
oneDNN's direct convolution (docs/performance.md). The transforms are native code for the CPU, the products torch's.
`A2S_WINOGRAD=0` in the environment leaves all convolutions to torch.
"""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from a2s_repro.ops import _native
from a2s_repro.ops._transforms import Rule, call, no_double_backward

FEWEST_CHANNELS = 128
"""On either side of a convolution. Of fewer, moving the points takes about as long as the products that they save."""

MOST_PRODUCTS = 0.55
"""Of those of the definition. A wide hole leaves tiles that lie beyond the map for the most part."""

MOST_TILES = 512
"""Worked on at once: enough for products at full speed, and few enough for their points to stay in cache."""

_ALONG_ONE_AXIS = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
_FILTER_TRANSFORM = torch.kron(_ALONG_ONE_AXIS, _ALONG_ONE_AXIS)


def pays(x: Tensor, weight: Tensor, dilation: int) -> bool:
    """Whether a convolution is one that `conv2d` takes and is faster for it."""
    if weight.shape[2:] != (3, 3) or min(weight.shape[:2]) < FEWEST_CHANNELS or x.numel() == 0:
        return False
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or _native.namespace_for(x) != "a2s":
        return False
    if os.environ.get("A2S_WINOGRAD") == "0":
        return False
    height, width = x.shape[2:]
    return 16 * _tiles(height, dilation) * _tiles(width, dilation) <= MOST_PRODUCTS * 9 * height * width


def transformed(weight: Tensor) -> Tensor:
    """Filters (F, C, 3, 3) as `conv2d` takes them, (16, F, C)."""
    return torch.matmul(_FILTER_TRANSFORM.to(weight.dtype), weight.permute(0, 2, 3, 1).flatten(1, 2)).transpose(0, 1)


def convolve(x: Tensor, filters: Tensor, bias: Tensor | None, dilation: int = 1) -> Tensor:
    """A 3x3 convolution of stride 1 whose padding keeps the size.

    Args:
        x: (N, C, H, W), channels_last, float32 or float64, on the CPU.
        filters: (16, F, C), as `transformed` makes them. Several calls can share them, and then their gradient.
        bias: (F,) or None.
        dilation: pixels between the taps.

    Returns:
        (N, F, H, W), channels_last.
    """
    return call(_FORWARD, x, filters, bias, dilation)


def _forward(x: Tensor, filters: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return _convolved(x, filters.transpose(1, 2), bias, dilation, mirrored=False)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, filters, _, ctx.dilation = inputs
    ctx.save_for_backward(x, filters)


@torch.autograd.function.once_differentiable
def _backward(ctx: Any, grad: Tensor) -> tuple:
    needed = dict(enumerate(ctx.needs_input_grad[2:]))  # of input, filters and bias
    return *call(_BACKWARD, grad, *ctx.saved_tensors, ctx.dilation, *(needed.get(i, False) for i in range(3))), None


def _gradients(
    grad: Tensor, x: Tensor, filters: Tensor, dilation: int, of_x: bool, of_filters: bool, of_bias: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    grad = grad.contiguous(memory_format=torch.channels_last)
    return (
        _convolved(grad, filters, None, dilation, mirrored=True) if of_x else None,
        _filter_gradient(x, grad, dilation) if of_filters else None,
        grad.sum((0, 2, 3)) if of_bias else None,
    )


_FORWARD = Rule("conv2d", _forward, _setup_context, _backward, batched=False)
_BACKWARD = Rule("conv2d_backward", _gradients, None, partial(no_double_backward, "conv2d_backward"), batched=False)


def _convolved(x: Tensor, matrices: Tensor, bias: Tensor | None, dilation: int, mirrored: bool) -> Tensor:
    """x convolved by the filters whose transform is `matrices`, (16, C, F), or by their mirror images."""
    channels, filters = matrices.shape[1:]
    y = torch.empty_like(x[:, :1].expand(-1, filters, -1, -1), memory_format=torch.channels_last)
    for first, inputs, products in _stretches(x, dilation, channels, filters):
        torch.ops.a2s.winograd_input(x, dilation, first, mirrored, inputs)
        torch.bmm(inputs, matrices, out=products)
        torch.ops.a2s.winograd_output(products, bias, dilation, first, mirrored, y)
    return y


def _filter_gradient(x: Tensor, grad: Tensor, dilation: int) -> Tensor:
    """(16, F, C) from the input (N, C, H, W) and the result's gradient (N, F, H, W)."""
    channels, filters = x.size(1), grad.size(1)
    result = x.new_empty(16, filters, channels)
    for first, inputs, products in _stretches(x, dilation, channels, filters):
        torch.ops.a2s.winograd_input(x, dilation, first, False, inputs)
        torch.ops.a2s.winograd_output_grad(grad, dilation, first, products)
        torch.baddbmm(result, products.transpose(1, 2), inputs, beta=1 if first else 0, out=result)
    return result


def _stretches(x: Tensor, dilation: int, channels: int, filters: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Divides the tiles of a map: the first of each stretch, and room for its points on both sides, used again."""
    tiles = x.size(0) * _tiles(x.size(2), dilation) * _tiles(x.size(3), dilation)
    length = -(-tiles // -(-tiles // min(MOST_TILES, channels + filters)))
    inputs, products = x.new_empty(16 * length * channels), x.new_empty(16 * length * filters)
    for first in range(0, tiles, length):
        count = min(length, tiles - first)
        points = inputs[: 16 * count * channels].view(16, count, channels)
        yield first, points, products[: 16 * count * filters].view(16, count, filters)


def _tiles(side: int, dilation: int) -> int:
    """Along a side: two results each, on every one of the grids that a dilation sets apart."""
    longer, shorter = -(-side // dilation), side // dilation
    grids = side % dilation
    return grids * -(-longer // 2) + (dilation - grids) * -(-shorter // 2)


def _fake(*_: Any) -> None:
    return None


for _name in ("winograd_input", "winograd_output", "winograd_output_grad"):
    _native.register(_name, _fake, differentiable=False)
