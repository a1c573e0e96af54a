"""Score maps of several scales merged by their maximum."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from a2s_repro.ops import _native
from a2s_repro.ops._check import check_maps, check_size
from a2s_repro.ops.interp import resample, to_compute_dtype


def scale_max(scores: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Maximum over s of `interp(scores[s], size)`: (N, C, h, w) from S maps (N, C, h_s, w_s), in one pass.

    The max-merging baseline: Interp and Eltwise MAX of the authors' nets, with Caffe's ties: of the first two maps the
    second wins a tie, a later map must be strictly greater. The gradient goes to the winner alone. Channels_last if
    scores[0] is.

    Raises:
        ValueError, TypeError: wrong shapes, size or dtype, or tensors that do not belong together.
    """
    check_maps("scale_max", "scores", scores, same_channels=True)
    height, width = check_size("scale_max", size)
    ops = _native.operators(scores[0], len(scores))
    if ops is None:
        return scale_max_reference(scores, (height, width))
    merged, _winner = ops.scale_max(list(scores), height, width)
    return merged


def scale_max_reference(scores: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """`scale_max` in plain torch operations."""
    merged, *others = (resample(to_compute_dtype(score), size) for score in scores)
    for index, other in enumerate(others):
        keeps = merged > other if index == 0 else ~(other > merged)
        merged = torch.where(keeps, merged, other)
    return merged.to(scores[0].dtype)


def _fake(scores: list[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
    shape = (*scores[0].shape[:2], height, width)
    merged = _native.empty_like_layout(scores[0], shape)
    return merged, _native.empty_like_layout(scores[0], shape, torch.uint8)


def _fake_backward(grad: Tensor, winner: Tensor, scores: list[Tensor]) -> list[Tensor]:
    return [_native.empty_like_layout(score, score.shape) for score in scores]


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[0], output[1])


def _backward(ops: Any, ctx: Any, grad: Tensor, _: None) -> tuple:
    *scores, winner = ctx.saved_tensors
    return ops.scale_max_backward(grad, winner, scores), None, None


_native.register("scale_max", _fake, setup_context=_setup_context, backward=_backward, promote=True)
_native.register("scale_max_backward", _fake_backward)
