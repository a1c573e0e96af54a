"""The inference tail: labels at full resolution, without the upsampled scores."""

from collections.abc import Sequence

import torch
from torch import Tensor

from a2s_repro.ops import _native
from a2s_repro.ops._check import check_map, check_size
from a2s_repro.ops.interp import resample, to_compute_dtype


def segment(scores: Tensor, size: Sequence[int]) -> Tensor:
    """`interp(scores, size)` and the largest class of each pixel: (N, C, h, w) -> (N, H, W) uint8 labels.

    Caffe's `fc8_interp` and ArgMax: a tie goes to the larger class index. C is at most 256. Where scores are NaN, the
    classes after the last of them are compared; without such a class the last NaN's wins.

    Raises:
        ValueError, TypeError: wrong shape, size or dtype, or more than 256 classes.
    """
    check_map("segment", "scores", scores)
    height, width = check_size("segment", size)
    if scores.size(1) > 256:
        raise ValueError(f"segment: scores has {scores.size(1)} classes; uint8 labels hold at most 256.")
    ops = _native.operators(scores)
    return segment_reference(scores, (height, width)) if ops is None else ops.segment(scores, height, width)


def segment_reference(scores: Tensor, size: Sequence[int]) -> Tensor:
    """`segment` in plain torch operations."""
    resized = resample(to_compute_dtype(scores.detach()), size)
    if torch.compiler.is_compiling() or resized.isnan().any():
        numbers = torch.arange(1, scores.size(1) + 1, device=scores.device, dtype=torch.int32).view(-1, 1, 1)
        up_to_nan = (resized.isnan() * numbers).amax(1, keepdim=True)
        resized = resized.masked_fill(numbers <= up_to_nan, -torch.inf)
    last = resized.flip(1).argmax(1)
    return (scores.size(1) - 1 - last).to(torch.uint8)


def _fake(scores: Tensor, height: int, width: int) -> Tensor:
    return scores.new_empty((scores.size(0), height, width), dtype=torch.uint8)


_native.register("segment", _fake, differentiable=False)
