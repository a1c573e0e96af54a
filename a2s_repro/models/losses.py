"""The training losses and accuracies as Caffe's SoftmaxWithLoss and SegAccuracy layers compute them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from a2s_repro import ops
from a2s_repro.errors import InputError
from a2s_repro.models import Prediction, base

IGNORED = (255,)
"""Labels that the losses ignore by default."""

MAX_PIXEL_LOSS = 87.33654
"""-log of the smallest normal float32, where Caffe clamps the probability."""

SCALE_LOSS_NAMES = {
    2: "loss_res2",
    1.5: "loss_res15",
    1.25: "loss_res125",
    1: "loss_res1",
    0.75: "loss_res075",
    0.5: "loss_res05",
    0.25: "loss_res025",
}

OFF_THE_PIXELS = (1.5, 1.25, 0.75)
"""Scales at which a cell has no whole number of pixels. A label map cannot be resampled to them, so their scores are
resized to the grid of the labels (`label_stride`), at 0.75 that of scale 1; those of other scales stay on their own."""


def softmax_with_loss(
    scores: Tensor,
    labels: Tensor,
    ignore_labels: Sequence[int] = IGNORED,
    normalize: bool = True,
    class_weights: Tensor | None = None,
    passes: int | None = None,
) -> Tensor:
    """Mean cross-entropy of the valid pixels of the whole batch, as a scalar, or of each of its passes.

    sum over valid pixels of w[y] * min(logsumexp(x) - x[y], 87.33654), divided by the sum of their w[y], or by the
    number of images if not `normalize`. Where the minimum acts, the gradient is still the softmax's, as in Caffe.
    Without a valid pixel the loss and its gradient are 0.

    Args:
        scores: (N, C, h, w); float16 and bfloat16 compute in float32.
        labels: (N, h, w) of any dtype; fractions are truncated.
        ignore_labels: labels of pixels that count for nothing.
        class_weights: (C,) w; all 1 by default.
        passes: K, if the batch consists of K passes of equally many images; the result is then (K,), a mean for each.

    Raises:
        InputError: the shapes do not belong together, or a label is neither a class nor ignored. Labels on a GPU are
            not looked at, because that would wait for it: data sets check theirs as they read them.

    Source: Caffe SoftmaxWithLoss of the authors' fork, with its loss_param and softmax_loss_param.
    """
    if labels.shape != scores.shape[:1] + scores.shape[2:]:
        raise InputError(f"labels of shape {tuple(labels.shape)} do not fit scores of shape {tuple(scores.shape)}.")
    scores = scores if scores.dtype == torch.float64 else scores.float()
    labels = labels.long()
    valid = _valid_pixels(labels, ignore_labels, scores.shape[1])
    target = torch.where(valid, labels, 0).unsqueeze(1)
    loss = -F.log_softmax(scores, 1).gather(1, target).squeeze(1)
    loss = loss + (loss.clamp(max=MAX_PIXEL_LOSS) - loss).detach()

    weights = valid.to(scores.dtype) if class_weights is None else class_weights.to(scores)[target.squeeze(1)] * valid
    losses, weights = ((weights * loss).reshape(passes or 1, -1).sum(1), weights.reshape(passes or 1, -1))
    total = weights.sum(1) if normalize else weights.new_tensor(len(scores) / len(weights))
    means = losses / torch.where(total == 0, 1, total)
    return means[0] if passes is None else means


class SegAccuracy(NamedTuple):
    """The three tops of Caffe's SegAccuracy layer, each in [0, 1]."""

    pixel: float
    """Correct pixels among the valid ones."""
    recall: float
    """Recall, averaged over the classes present in the labels."""
    iou: float
    """Intersection over union, averaged over all classes; a class in neither labels nor prediction counts 1."""


def seg_accuracy(scores: Tensor, labels: Tensor, ignore_labels: Sequence[int] = IGNORED) -> SegAccuracy:
    """Accuracies of a batch: scores (N, C, h, w), labels (N, h, w); equal scores go to the larger class.

    Source: Caffe SegAccuracy. This is the layer that watches training, not the VOC protocol.
    """
    labels = labels.long()
    classes = scores.shape[1]
    valid = _valid_pixels(labels, ignore_labels, classes)
    predicted = ops.segment(scores, scores.shape[2:]).long()
    confusion = torch.bincount(labels[valid] * classes + predicted[valid], minlength=classes**2)
    confusion = confusion.view(classes, classes).double()
    correct, in_labels, in_prediction = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    union = in_labels + in_prediction - correct
    present = in_labels > 0
    return SegAccuracy(
        pixel=(correct.sum() / in_labels.sum().clamp(min=1)).item(),
        recall=((correct / in_labels)[present].sum() / present.sum().clamp(min=1)).item(),
        iou=torch.where(union > 0, correct / union, 1).mean().item(),
    )


def loss_inputs(
    prediction: Prediction, labels: Tensor, extra_supervision: bool, label_stride: int | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """The scores and labels that meet in each loss of a training net, by the loss's name in the authors' files.

    `loss` is the merged map's; extra supervision adds one per scale: `loss_res1`, `loss_res075`, `loss_res05`,
    `loss_res025`. Each is taken on the grid of its scores, or all of them at every `label_stride`-th pixel, to which
    the scores are interpolated. `labels` is (N, H, W) at the size of the image.

    Raises:
        InputError: extra supervision of a single scale, or a label size that does not align with the grids.
    """

    def meeting(scores: Tensor, stride: int, scale: float) -> tuple[Tensor, Tensor]:
        if label_stride is None and scale not in OFF_THE_PIXELS:
            return scores, shrink_labels(labels, stride)
        sparse = shrink_labels(labels, label_stride or stride)
        return ops.interp(scores, sparse.shape[1:]), sparse

    finest = max(1, prediction.scales[0])
    inputs = {"loss": meeting(prediction.scores, prediction.stride, finest)}
    if extra_supervision:
        if len(prediction.scales) == 1:
            raise InputError("extra supervision takes two or more scales; a single scale has only the one loss.")
        on_own_grids = prediction.supervised is None
        scores_at = dict(zip(prediction.scales, prediction.supervised or prediction.scale_scores, strict=True))
        for scale in prediction.loss_order:
            stride = base.label_stride(scale, prediction.output_stride) if on_own_grids else prediction.stride
            inputs[SCALE_LOSS_NAMES[scale]] = meeting(scores_at[scale], stride, scale if on_own_grids else finest)
    return inputs


def training_loss(
    prediction: Prediction,
    labels: Tensor,
    extra_supervision: bool,
    label_stride: int | None = None,
    passes: int | None = None,
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """The losses of a training net, of weight 1, each a scalar or (passes,); the net is trained on their sum.

    Args and names as for `loss_inputs` and `softmax_with_loss`.
    """
    inputs = loss_inputs(prediction, labels, extra_supervision, label_stride)
    return {
        name: softmax_with_loss(scores, sparse, class_weights=class_weights, passes=passes)
        for name, (scores, sparse) in inputs.items()
    }


def shrink_labels(labels: Tensor, factor: int) -> Tensor:
    """Every `factor`-th pixel of (N, H, W) labels, which is what Interp does where H and W are k * factor + 1.

    Raises:
        InputError: another size, where Interp would blend label values into other labels.
    """
    if any((size - 1) % factor for size in labels.shape[1:]):
        raise InputError(
            f"labels of {labels.shape[1]}x{labels.shape[2]} pixels cannot be shrunk by {factor} without blending: "
            f"use a crop of {factor}k + 1."
        )
    return labels[:, ::factor, ::factor]


def _valid_pixels(labels: Tensor, ignore_labels: Sequence[int], num_classes: int) -> Tensor:
    """Mask of the pixels that are not ignored, once their labels are known to be classes (see softmax_with_loss)."""
    valid = torch.ones_like(labels, dtype=torch.bool)
    for ignored in ignore_labels:
        valid &= labels != ignored
    if not labels.is_cuda:
        wrong = labels[valid & ((labels < 0) | (labels >= num_classes))].unique().tolist()
        if wrong:
            raise InputError(
                f"labels hold {', '.join(map(str, wrong[:5]))}{' ...' if len(wrong) > 5 else ''}, but the net has "
                f"classes 0 to {num_classes - 1}: give the net more classes, or mark those pixels to be ignored."
            )
    return valid
