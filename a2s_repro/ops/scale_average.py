"""Score maps of several scales averaged."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from a2s_repro.ops import _native
from a2s_repro.ops._check import check_maps, check_size
from a2s_repro.ops.interp import resample, to_compute_dtype


def scale_average(scores: Sequence[Tensor], size: Sequence[int], factor: float | None = None) -> Tensor:
    """factor * sum over s of `interp(scores[s], size)`: (N, C, h, w) from S maps (N, C, h_s, w_s), in one pass.

    The average-merging baseline: Interp, Eltwise SUM (in the order given) and Power of the authors' nets, whose scale
    is 0.33333 for three scales. `factor` defaults to 1/S and acts as a float32. Channels_last if scores[0] is.

    Raises:
        ValueError, TypeError: wrong shapes, size or dtype, or tensors that do not belong together.
    """
    check_maps("scale_average", "scores", scores, same_channels=True)
    height, width = check_size("scale_average", size)
    factor = 1 / len(scores) if factor is None else factor
    ops = _native.operators(scores[0], len(scores))
    if ops is None:
        return scale_average_reference(scores, (height, width), factor)
    return ops.scale_average(list(scores), height, width, factor)


def scale_average_reference(scores: Sequence[Tensor], size: Sequence[int], factor: float | None = None) -> Tensor:
    """`scale_average` in plain torch operations."""
    factor = 1 / len(scores) if factor is None else factor
    total = functools.reduce(torch.add, (resample(to_compute_dtype(score), size) for score in scores))
    return (total * float32(factor)).to(scores[0].dtype)


def float32(value: float) -> float:
    """`value` rounded to float32, as Caffe's layer parameters are."""
    return float(np.float32(value))


def _fake(scores: list[Tensor], height: int, width: int, factor: float) -> Tensor:
    return _native.empty_like_layout(scores[0], (*scores[0].shape[:2], height, width))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    scores, _, _, ctx.factor = inputs
    ctx.shapes = [score.shape for score in scores]


def _backward(ops: Any, ctx: Any, grad: Tensor) -> tuple:
    shaped = [grad.new_empty(()).expand(shape) for shape in ctx.shapes]  # of the scores only their shapes are needed
    return ops.scale_average_backward(grad, shaped, ctx.factor), None, None, None


def _fake_backward(grad: Tensor, scores: list[Tensor], factor: float) -> list[Tensor]:
    return [_native.empty_like_layout(grad, score.shape) for score in scores]


_native.register("scale_average", _fake, setup_context=_setup_context, backward=_backward, linear=True, promote=True)
_native.register("scale_average_backward", _fake_backward, linear=True)
