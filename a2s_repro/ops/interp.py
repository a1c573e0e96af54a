"""Caffe's Interp layer: align-corners bilinear resizing, without anti-aliasing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from a2s_repro.ops import _native
from a2s_repro.ops._check import check_map, check_size


def interp_size(n: int, *, zoom: int | None = None, shrink: int | None = None) -> int:
    """Output length, in pixels, of one axis of `n` pixels under Interp's `zoom_factor` and `shrink_factor`.

    Shrinking comes first: 321 with shrink 4 and zoom 3 becomes 81, then 241. Source: Caffe Interp layer.
    """
    for name, factor in (("zoom", zoom), ("shrink", shrink)):
        if factor is not None and factor < 1:
            raise ValueError(f"interp_size: {name} must be a positive integer, not {factor}.")
    if n < 1:
        raise ValueError(f"interp_size: n must be a positive number of pixels, not {n}.")
    if shrink is not None:
        n = (n - 1) // shrink + 1
    if zoom is not None:
        n = n + (n - 1) * (zoom - 1)
    return n


def interp(x: Tensor, size: Sequence[int], pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Resizes (N, C, H, W) maps to (N, C, h, w) as Caffe's Interp layer does.

    Bilinear between pixel centres with the corners aligned; the sampling coordinates are float32 whatever the dtype,
    as in Caffe. There is no anti-aliasing. An axis of one output pixel samples pixel 0.

    Args:
        x: float32, float64, float16 or bfloat16 (the last two compute in float32); any strides.
        size: (h, w) in pixels; `interp_size` computes it from zoom and shrink factors.
        pad: (pad_beg, pad_end) <= 0: pixels cropped from the beginning and the end of both axes first.

    Returns:
        A tensor of x's dtype, channels_last if x is, else contiguous.

    Raises:
        ValueError, TypeError: wrong shape, size, pad or dtype.
    """
    check_map("interp", "x", x)
    height, width = check_size("interp", size)
    if pad != (0, 0):
        x = _cropped(x, pad)
    ops = _native.operators(x)
    return interp_reference(x, (height, width)) if ops is None else ops.interp(x, height, width)


def interp_reference(x: Tensor, size: Sequence[int]) -> Tensor:
    """`interp` in plain torch operations, without `pad`."""
    return resample(to_compute_dtype(x), size).to(x.dtype)


def to_compute_dtype(x: Tensor) -> Tensor:
    """float64 stays, everything else computes in float32."""
    return x if x.dtype == torch.float64 else x.float()


def resample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Interp's sum for a float32 or float64 map: (1-ly)[(1-lx)a00 + lx a01] + ly[(1-lx)a10 + lx a11]."""
    height, width = size
    if x.shape[2:] == (height, width):
        return x.clone()
    top, bottom, ly = _taps(x.size(2), height, x)
    left, right, lx = _taps(x.size(3), width, x)
    rows = (1 - lx) * x.index_select(3, left) + lx * x.index_select(3, right)
    ly = ly[:, None]
    return (1 - ly) * rows.index_select(2, top) + ly * rows.index_select(2, bottom)


def _taps(length: int, out_length: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both neighbours of each output pixel along an axis and the weight of the second, from float32 coordinates."""
    ratio = (length - 1) / (out_length - 1) if out_length > 1 else 0.0
    position = torch.arange(out_length, dtype=torch.float32, device=like.device) * torch.tensor(
        ratio, dtype=torch.float32, device=like.device
    )
    low = position.long()
    return low, (low + 1).clamp(max=length - 1), (position - low).to(like.dtype)


def _cropped(x: Tensor, pad: tuple[int, int]) -> Tensor:
    begin, end = pad
    if begin > 0 or end > 0:
        raise ValueError(f"interp: pad must be (<= 0, <= 0), not {tuple(pad)}; Interp's pads only crop.")
    if min(x.shape[2:]) + begin + end < 1:
        raise ValueError(f"interp: pad {tuple(pad)} leaves nothing of a {x.size(2)}x{x.size(3)} map.")
    return x[:, :, -begin : x.size(2) + end, -begin : x.size(3) + end]


def _fake(x: Tensor, height: int, width: int) -> Tensor:
    return _native.empty_like_layout(x, (x.size(0), x.size(1), height, width))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.size = inputs[0].shape[2:]


def _backward(ops: Any, ctx: Any, grad: Tensor) -> tuple:
    return ops.interp_backward(grad, *ctx.size), None, None


_native.register("interp", _fake, setup_context=_setup_context, backward=_backward, linear=True)
_native.register("interp_backward", _fake, linear=True)
