"""Convolutions that train faster on the CPU: their weight gradients are matrix products."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MANY_CHANNELS = 512
"""From so many input channels on, products were faster than oneDNN; in bfloat16, without a wide hole, from twice as
many."""


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """torch's conv2d with an odd window, stride 1 and the padding that keeps the size.

    On the CPU in channels_last the weight gradient of many channels is made by a matrix product for each tap, over the
    pixels whose tap lies in the image. oneDNN's own reads the padding, too, which is most of what a wide hole sees, and
    takes up to 6 times as long in float32 and 16 times in bfloat16. In float32 the bias gradient is summed on its own:
    oneDNN's weight gradient takes up to a quarter longer with it. Everything else is torch's.

    Args:
        x: (N, C, H, W).
        weight: (F, C, k, k) with k odd, of the same dtype unless autocast is on.
        bias: (F,) or None.
        dilation: pixels between the taps (Caffe's hole).

    Returns:
        (N, F, H, W).
    """
    training = torch.is_grad_enabled() and weight.requires_grad and not torch.compiler.is_compiling()
    dense = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
    if training and dense:
        dtype = product_dtype(x)
        products = x.size(1) >= (2 * MANY_CHANNELS if dtype == torch.bfloat16 and dilation <= 2 else MANY_CHANNELS)
        if products or dtype == torch.float32:
            x, weight, bias = (y if y is None else y.to(dtype) for y in (x, weight, bias))
            return _Conv2d.apply(x, weight.contiguous(memory_format=torch.channels_last), bias, dilation, products)
    return F.conv2d(x, weight, bias, padding=dilation * (weight.size(2) // 2), dilation=dilation)


def product_dtype(tensor: Tensor) -> torch.dtype:
    """What a product of `tensor` is computed in: autocast's dtype, or without autocast its own."""
    device = tensor.device.type
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # not for meta tensors
    return torch.get_autocast_dtype(device) if enabled else tensor.dtype


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, products: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation, ctx.products = dilation, products
        return F.conv2d(x, weight, bias, padding=dilation * (weight.size(2) // 2), dilation=dilation)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        holes, padding = [ctx.dilation] * 2, [ctx.dilation * (weight.size(2) // 2)] * 2
        asked = [ctx.needs_input_grad[0], not ctx.products, False]
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1, 1], padding, holes, False, [0, 0], 1, asked
        )
        if ctx.products:
            of_weight = _weight_gradient(grad, x, weight.size(2), ctx.dilation)
        of_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias, None, None


def _weight_gradient(grad: Tensor, x: Tensor, window: int, dilation: int) -> Tensor:
    """(F, C, k, k), channels_last, from the result's gradient (N, F, H, W) and the input (N, C, H, W)."""
    grad, x = grad.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
    sides, filters, channels = x.shape[1:3], grad.size(3), x.size(3)
    result = grad.new_empty(filters, window, window, channels)
    for row in range(window):
        for column in range(window):
            steps = (dilation * (row - window // 2), dilation * (column - window // 2))
            (rows, their_rows), (columns, their_columns) = map(_overlap, sides, steps)
            seen = x[:, rows, columns].reshape(-1, channels)
            seeing = grad[:, their_rows, their_columns].reshape(-1, filters)
            torch.mm(seeing.t(), seen, out=result[:, row, column])
    return result.permute(0, 3, 1, 2)


def _overlap(side: int, step: int) -> tuple[slice, slice]:
    """Along a side: the inputs that a tap `step` pixels away sees, and the results that see them."""
    length = max(side - abs(step), 0)
    return slice(max(step, 0), max(step, 0) + length), slice(max(-step, 0), max(-step, 0) + length)
