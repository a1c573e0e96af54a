"""A convolution over several maps resized to one grid, without resizing them."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from a2s_repro.ops import _native
from a2s_repro.ops._check import check_map, check_maps, check_size
from a2s_repro.ops.conv2d import conv2d, product_dtype
from a2s_repro.ops.interp import interp
from a2s_repro.ops.interp_concat import interp_concat_reference
from a2s_repro.ops.interp_shift_add import interp_shift_add


def interp_concat_conv2d(
    features: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: Sequence[int]
) -> Tensor:
    """`conv2d` of `interp_concat(features, size)`, which is never made: the first layer of the attention head.

    Convolving and resizing commute, so each map is convolved at its own resolution, by the taps of its filters one by
    one, and what that gives is resized, shifted and summed; docs/attention_head.md has the derivation. The result is
    that of the definition, which is the reference, in another order of summation. Of low-precision dtypes the sum
    is rounded after every map.

    Args:
        features: S tensors (N, C_s, h_s, w_s), float32, float64, float16 or bfloat16.
        weight: (F, sum of C_s, k, k) with k of 1 or 3; stride 1, zeros around the resized maps keep their size.
        bias: (F,) or None.
        size: (h, w) of the result in pixels.

    Returns:
        (N, F, h, w).

    Raises:
        ValueError, TypeError: wrong shapes, size or dtype, or tensors that do not belong together.
    """
    name = "interp_concat_conv2d"
    check_maps(name, "features", features, same_channels=False)
    check_map(name, "weight", weight)
    height, width = check_size(name, size)
    channels = [x.size(1) for x in features]
    if weight.shape[1:] not in ((sum(channels), 1, 1), (sum(channels), 3, 3)):
        raise ValueError(
            f"{name}: weight has shape {tuple(weight.shape)}; for features of {sum(channels)} channels give "
            f"(F, {sum(channels)}, 1, 1) or (F, {sum(channels)}, 3, 3)."
        )
    padding = weight.size(2) // 2
    if _native.namespace_for(features[0]) is None:
        return F.conv2d(interp_concat_reference(features, (height, width)), weight, bias, padding=padding)
    parts = list(zip(features, _split(weight, channels, product_dtype(weight)), strict=True))
    if features[0].shape[2:] == (height, width):
        (x, filters), *parts = parts
        result = conv2d(x, filters, bias)
    else:
        start = weight.new_zeros(()) if bias is None else bias[:, None, None]
        result = start.expand(features[0].size(0), weight.size(0), height, width)
    for x, filters in parts:
        if padding == 0:
            result = result + interp(conv2d(x, filters), (height, width))
        else:
            taps = filters.permute(2, 3, 0, 1).flatten(0, 2)[..., None, None]
            result = interp_shift_add(conv2d(x, taps), result)
    return result


def _split(weight: Tensor, channels: list[int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """weight.to(dtype).split(channels, 1)."""
    if torch.compiler.is_compiling():  # Dynamo traces no autograd.Function with a forward-mode derivative
        return tuple(part.to(dtype) for part in weight.split(channels, dim=1))
    return _Split.apply(weight, channels, dtype)


class _Split(torch.autograd.Function):
    """weight.to(dtype).split(channels, 1); the gradient is made in one pass, in the weight's dtype and layout."""

    @staticmethod
    def forward(weight: Tensor, channels: list[int], dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(part.to(dtype) for part in weight.split(channels, dim=1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        weight, ctx.channels, ctx.dtype = inputs
        ctx.save_for_backward(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        result = grads[0].new_empty_strided(weight.shape, weight.stride(), dtype=weight.dtype)
        for part, grad in zip(result.split(ctx.channels, dim=1), grads, strict=True):
            part.copy_(grad)
        return result, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> tuple[Tensor, ...]:
        return _Split.apply(tangent, ctx.channels, ctx.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, weight: Tensor, channels: list[int], dtype: torch.dtype) -> tuple[tuple, tuple]:
        parts = weight.movedim(in_dims[0], 0).split(channels, dim=2)
        return tuple(part.to(dtype) for part in parts), (0,) * len(parts)
