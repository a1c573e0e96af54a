"""Score maps of several scales merged by the attention's weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from a2s_repro.ops import _native
from a2s_repro.ops._check import check_map, check_maps, check_matches, check_size
from a2s_repro.ops.interp import resample, to_compute_dtype


def scale_merge(
    scores: Sequence[Tensor], logits: Tensor, size: Sequence[int] | None = None, recalibration: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Merges score maps of S scales by a softmax over scales, in one pass (A2S Eq. 1 and 2).

    weights[n,s,y,x] = softmax over s of logits; merged[n,c,y,x] = sum over s of weights[n,s,y,x] * f_s[n,c,y,x],
    where f_s is `interp` of scores[s] to the result's grid. No resized score map is stored. In the authors' nets these
    are the layers `attention`, `slice_attention`, `*_interp`, `*_product` and `fc8_fusion`.

    Args:
        scores: S tensors (N, C, h_s, w_s) of one dtype, each on its own grid.
        logits: (N, S, h, w), the attention head's output, of the same dtype.
        size: grid of the result, in pixels. Default: the logits' grid. Another size takes the softmax on the logits'
            grid and interpolates the weights (the MSc share-net's test phase).
        recalibration: (N, C, *size), multiplies the merged scores (A2R Eq. 3: as all scales share it, it can as well
            multiply every scale's scores before they are weighed). Default: none.

    Returns:
        merged (N, C, *size), channels_last if scores[0] is; weights (N, S, *size), channels_last if logits is.

    Raises:
        ValueError, TypeError: wrong shapes, size or dtype, or tensors that do not belong together.
    """
    check_maps("scale_merge", "scores", scores, same_channels=True)
    check_map("scale_merge", "logits", logits)
    check_matches("scale_merge", "logits", logits, "scores[0]", scores[0])
    if logits.size(1) != len(scores):
        raise ValueError(f"scale_merge: logits has {logits.size(1)} channels for {len(scores)} score maps; give equal.")
    height, width = logits.shape[2:] if size is None else check_size("scale_merge", size)
    if recalibration is not None:
        check_map("scale_merge", "recalibration", recalibration)
        check_matches("scale_merge", "recalibration", recalibration, "scores[0]", scores[0])
        if recalibration.shape[1:] != (scores[0].size(1), height, width):
            raise ValueError(
                f"scale_merge: recalibration has {tuple(recalibration.shape[1:])} channels, rows and columns; the "
                f"merged scores have {(scores[0].size(1), height, width)}."
            )
    ops = _native.operators(logits, len(scores))
    if ops is None:
        return scale_merge_reference(scores, logits, (height, width), recalibration)
    return ops.scale_merge(list(scores), logits, height, width, recalibration)


def scale_merge_reference(
    scores: Sequence[Tensor], logits: Tensor, size: Sequence[int] | None = None, recalibration: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`scale_merge` in plain torch operations."""
    size = logits.shape[2:] if size is None else size
    weights = resample(torch.softmax(to_compute_dtype(logits), dim=1), size)
    merged = sum(
        weight * resample(to_compute_dtype(score), size)
        for weight, score in zip(weights.split(1, dim=1), scores, strict=True)
    )
    if recalibration is not None:
        merged = merged * to_compute_dtype(recalibration)
    widest = torch.promote_types(scores[0].dtype, logits.dtype)  # they differ under autocast alone
    return merged.to(widest), weights.to(widest)


def _fake(
    scores: list[Tensor], logits: Tensor, height: int, width: int, recalibration: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    merged = _native.empty_like_layout(scores[0], (*scores[0].shape[:2], height, width))
    return merged, _native.empty_like_layout(logits, (*logits.shape[:2], height, width))


def _fake_backward(
    grad: Tensor,
    grad_weights: Tensor | None,
    scores: list[Tensor],
    logits: Tensor,
    weights: Tensor,
    recalibration: Tensor | None = None,
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    def like(tensor: Tensor) -> Tensor:
        return _native.empty_like_layout(tensor, tensor.shape)

    return [like(s) for s in scores], like(logits), [] if recalibration is None else [like(recalibration)]


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    scores, logits, _, _, recalibration = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*scores, logits, output[1], recalibration)


def _backward(ops: Any, ctx: Any, grad: Tensor | None, grad_weights: Tensor | None) -> tuple:
    *scores, logits, weights, recalibration = ctx.saved_tensors
    if grad is None:
        grad = scores[0].new_zeros((*scores[0].shape[:2], *weights.shape[2:]))
    grad_scores, grad_logits, grad_recalibration = ops.scale_merge_backward(
        grad, grad_weights, scores, logits, weights, recalibration
    )
    return grad_scores, grad_logits, None, None, next(iter(grad_recalibration), None)


_native.register("scale_merge", _fake, setup_context=_setup_context, backward=_backward, promote=True)
_native.register("scale_merge_backward", _fake_backward)
