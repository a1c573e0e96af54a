"""A 3x3 convolution of a resized map, from what its nine taps give at the map's own resolution."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from a2s_repro.ops import _native
from a2s_repro.ops._check import check_map, check_matches
from a2s_repro.ops.interp import resample, to_compute_dtype


def interp_shift_add(planes: Tensor, base: Tensor) -> Tensor:
    """Resizes the planes of nine taps as `interp` does, shifts each by its tap, and adds them all to `base`.

    result[n,f,y,x] = base[n,f,y,x] + sum over dy, dx of interp(planes)[n, (3 dy + dx) F + f, y + dy - 1, x + dx - 1],
    without what lies beyond the border. Convolving and resizing commute, so where planes are the nine 1x1 convolutions
    by a 3x3 filter's taps, this adds the 3x3 convolution, with its padding of zeros, of the resized input; no resized
    map is stored. `interp_concat_conv2d` is the whole of it; docs/attention_head.md has the derivation.

    Args:
        planes: (N, 9 F, h_s, w_s), float32, float64, float16 or bfloat16 (the last two compute in float32).
        base: (N, F, h, w), of the same dtype; may be expanded.

    Returns:
        (N, F, h, w), channels_last if planes is, else contiguous.

    Raises:
        ValueError, TypeError: wrong shapes or dtype, or tensors that do not belong together.
    """
    check_map("interp_shift_add", "planes", planes)
    check_map("interp_shift_add", "base", base)
    check_matches("interp_shift_add", "base", base, "planes", planes)
    if planes.size(1) != 9 * base.size(1):
        raise ValueError(
            f"interp_shift_add: planes has {planes.size(1)} channels, base has {base.size(1)}; give nine for each."
        )
    ops = _native.operators(planes)
    return interp_shift_add_reference(planes, base) if ops is None else ops.interp_shift_add(planes, base)


def interp_shift_add_reference(planes: Tensor, base: Tensor) -> Tensor:
    """`interp_shift_add` in plain torch operations."""
    height, width = base.shape[2:]
    resized = F.pad(resample(to_compute_dtype(planes), (height, width)), (1, 1, 1, 1))
    result = to_compute_dtype(base)
    for tap, plane in enumerate(resized.split(base.size(1), dim=1)):
        dy, dx = divmod(tap, 3)
        result = result + plane[:, :, dy : dy + height, dx : dx + width]
    return result.to(torch.promote_types(planes.dtype, base.dtype))  # they differ under autocast alone


def _fake(planes: Tensor, base: Tensor) -> Tensor:
    return _native.empty_like_layout(planes, base.shape)


def _fake_backward(grad: Tensor, height: int, width: int) -> Tensor:
    return _native.empty_like_layout(grad, (grad.size(0), 9 * grad.size(1), height, width))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.size = inputs[0].shape[2:]


def _backward(ops: Any, ctx: Any, grad: Tensor) -> tuple:
    return ops.interp_shift_add_backward(grad, *ctx.size), grad


_native.register("interp_shift_add", _fake, setup_context=_setup_context, backward=_backward, linear=True, promote=True)
_native.register("interp_shift_add_backward", _fake_backward, linear=True)
