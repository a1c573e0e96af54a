"""Convolutions that train faster on the CPU: of fewer products, and with weight gradients that are matrix products."""

from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from a2s_repro.ops import _native, winograd
from a2s_repro.ops._transforms import Rule, call, no_double_backward

MANY_CHANNELS = 512
"""From so many input channels on, products were faster than oneDNN's weight gradient; in bfloat16, without a wide hole,
from twice as many."""


class Filters:
    """A convolution's weight (F, C, k, k), and what several convolutions by it share, made when it is first asked for.

    So they share its gradient, which is summed before it is brought back to the weight's form.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    @cached_property
    def cast(self) -> Tensor:
        """In the dtype of the products."""
        return self.weight.to(product_dtype(self.weight))

    @cached_property
    def transformed(self) -> Tensor:
        """For Winograd's algorithm."""
        return winograd.transformed(self.weight)


def conv2d(x: Tensor, weight: Tensor | Filters, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """torch's conv2d with an odd window, stride 1 and the padding that keeps the size.

    On the CPU in channels_last, in float32 or float64, a 3x3 convolution of many channels is made by Winograd's
    algorithm (`ops/winograd.py`), with its gradients. Of any other the weight gradient of many channels is made by a
    matrix product for each tap, over the pixels whose tap lies in the image. oneDNN's own reads the padding, too, which
    is most of what a wide hole sees, and takes up to 6 times as long in float32 and 16 times in bfloat16. In float32
    the bias gradient is summed on its own: oneDNN's weight gradient takes up to a quarter longer with it, and sums it
    otherwise than version 0.1. Everything else is torch's, and everything under use_backend("reference").

    Args:
        x: (N, C, H, W).
        weight: (F, C, k, k) with k odd, of the same dtype unless autocast is on; as `Filters` where several
            convolutions share it.
        bias: (F,) or None.
        dilation: pixels between the taps (Caffe's hole).

    Returns:
        (N, F, H, W).
    """
    filters = weight if isinstance(weight, Filters) else Filters(weight)
    weight = filters.weight
    eager = x.device.type == "cpu" and not torch.compiler.is_compiling()
    if eager and not _native.is_reference() and _is_channels_last(x):
        dtype = product_dtype(x)
        if dtype == x.dtype and winograd.pays(x, weight, dilation):
            return winograd.convolve(x, filters.transformed, bias, dilation)
        if torch.is_grad_enabled() and weight.requires_grad:
            many_channels = 2 * MANY_CHANNELS if dtype == torch.bfloat16 and dilation <= 2 else MANY_CHANNELS
            if x.size(1) >= many_channels:
                weight = filters.cast.contiguous(memory_format=torch.channels_last)
                bias = None if bias is None else bias.to(dtype)
                return call(_FORWARD, x.to(dtype), weight, bias, dilation)
            if dtype == torch.float32 and bias is not None and bias.requires_grad:
                return _with_separate_bias_gradient(x, weight, bias, dilation)
    return _convolved(x, filters.cast if eager else weight, bias, dilation)


def _is_channels_last(x: Tensor) -> bool:
    try:
        return x.is_contiguous(memory_format=torch.channels_last)
    except RuntimeError:  # under vmap, for which torch's own convolution has a rule
        return False


def product_dtype(tensor: Tensor) -> torch.dtype:
    """What a product of `tensor` is computed in: autocast's dtype, or without autocast its own."""
    device = tensor.device.type
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # not for meta tensors
    return torch.get_autocast_dtype(device) if enabled else tensor.dtype


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return F.conv2d(x, weight, bias, padding=dilation * (weight.size(2) // 2), dilation=dilation)


def _with_separate_bias_gradient(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """The convolution plus a zero that has the bias gradient: the sum of the result's gradient in channels_last."""
    constant = bias.detach()
    result = _convolved(x, weight, constant, dilation).add_((bias - constant)[:, None, None])
    result.register_hook(_in_channels_last)
    return result


def _in_channels_last(grad: Tensor) -> Tensor:
    return grad.contiguous(memory_format=torch.channels_last)


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, dilation: int, of_x: bool, of_bias: bool
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """The gradients of input, weight and bias; the weight's by matrix products."""
    grad = _in_channels_last(grad)
    holes, padding = [dilation] * 2, [dilation * (weight.size(2) // 2)] * 2
    for_x, _, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], padding, holes, False, [0, 0], 1, [of_x, False, False]
    )
    return for_x, _weight_gradient(grad, x, weight.size(2), dilation), grad.sum((0, 2, 3)) if of_bias else None


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, _, ctx.dilation = inputs
    ctx.save_for_backward(x, weight)


@torch.autograd.function.once_differentiable
def _backward(ctx: Any, grad: Tensor) -> tuple:
    needed = dict(enumerate(ctx.needs_input_grad[2:]))  # of input, weight and bias
    gradients = call(_BACKWARD, grad, *ctx.saved_tensors, ctx.dilation, needed[0], needed.get(2, False))
    return *gradients, None


_FORWARD = Rule("conv2d", _convolved, _setup_context, _backward, batched=False)
_BACKWARD = Rule("conv2d_backward", _gradients, None, partial(no_double_backward, "conv2d_backward"), batched=False)


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
