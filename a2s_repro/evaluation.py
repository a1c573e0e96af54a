"""Segmenting whole images with a net, and scoring the result over a whole set as PASCAL VOC does."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from a2s_repro import ops
from a2s_repro.attention_by_size import AttentionBySize
from a2s_repro.checkpoint import load_weights
from a2s_repro.data import voc
from a2s_repro.data.image_seg import MEAN_BGR, subtract_mean
from a2s_repro.data.images import IGNORE_LABEL, read_pair
from a2s_repro.data.lists import VOID, Item, read_classes
from a2s_repro.errors import InputError
from a2s_repro.models import build_model
from a2s_repro.precision import float32_products


class ConfusionMatrix:
    """Pixel counts of a whole set, and the scores of the VOC protocol (the authors' MyVOCevalseg.m) as fractions.

    `counts` is (C, C) int64, rows ground truth, columns prediction. Counts are summed over all images before anything
    is divided, and every class counts in a mean, one that neither occurs nor is predicted with an IoU of 0; only
    `void_classes`, the outputs of a net that are no class of the data set, do not.
    """

    def __init__(self, num_classes: int, void_classes: Sequence[int] = ()):
        self.counts = np.zeros((num_classes, num_classes), np.int64)
        self.classes = np.setdiff1d(np.arange(num_classes), void_classes)
        """The labels that count, ascending."""

    def update(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Adds an image: two label maps of one shape, uint8; pixels whose truth is 255 do not count.

        Raises InputError for another label that is no class.
        """
        valid = truth != IGNORE_LABEL
        truth, predicted = truth[valid], predicted[valid]
        classes = len(self.counts)
        if max(truth.max(initial=0), predicted.max(initial=0)) >= classes:
            raise InputError(f"A label map to be scored holds a value beyond the {classes} classes.")
        pairs = truth.astype(np.int64) * classes + predicted
        self.counts += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    @property
    def iou(self) -> np.ndarray:
        """(C,) float64, true positives over the union of truth and prediction."""
        correct = np.diag(self.counts)
        return correct / np.maximum(self.counts.sum(0) + self.counts.sum(1) - correct, 1)

    @property
    def class_accuracy(self) -> np.ndarray:
        """(C,) float64, the part of a class's pixels that was found."""
        return np.diag(self.counts) / np.maximum(self.counts.sum(1), 1)

    @property
    def mean_iou(self) -> float:
        return float(self.iou[self.classes].mean())

    @property
    def mean_class_accuracy(self) -> float:
        return float(self.class_accuracy[self.classes].mean())

    @property
    def pixel_accuracy(self) -> float:
        return float(np.trace(self.counts) / max(self.counts.sum(), 1))


class AttentionStatistics:
    """Mean and standard deviation of the attention weights of each scale over the pixels of a whole set."""

    def __init__(self, scales: Sequence[float]):
        self.scales = tuple(scales)
        self._pixels = 0
        self._sums = np.zeros((2, len(self.scales)))  # of the weights less 1/S, and of their squares

    def update(self, weights: Tensor) -> None:
        """Adds the weights (S, H, W) of an image."""
        centred = weights.double().flatten(1) - 1 / len(self.scales)
        self._pixels += centred.shape[1]
        self._sums += np.stack([centred.sum(1).cpu(), centred.square().sum(1).cpu()])

    @property
    def mean(self) -> np.ndarray:
        return self._sums[0] / self._pixels + 1 / len(self.scales)

    @property
    def std(self) -> np.ndarray:
        first, second = self._sums / self._pixels
        return np.sqrt(np.maximum(second - first**2, 0))


class Segmentation(NamedTuple):
    """What a net makes of one image."""

    labels: np.ndarray
    """(H, W) uint8."""
    weights: Tensor | None
    """(S, H, W) float32 attention weights; None where the merge has none."""


@dataclass(frozen=True)
class Result:
    """Scores of a net on a set. `attention` is None where the merge has no weights, `by_size` unless asked for, too."""

    images: int
    confusion: ConfusionMatrix
    attention: AttentionStatistics | None
    by_size: AttentionBySize | None = None

    def table(self, classes: Sequence[str]) -> str:
        """A line per class that counts with its IoU and accuracy in per cent, and the means. `classes` names all C."""
        scores = self.confusion
        rows = [(classes[label], scores.iou[label], scores.class_accuracy[label]) for label in scores.classes]
        rows.append(("mean", scores.mean_iou, scores.mean_class_accuracy))
        width = max(len(name) for name, *_ in rows)
        lines = [f"{'class':<{width}}    IoU %   acc %"]
        lines += [f"{name:<{width}}  {100 * iou:7.2f} {100 * accuracy:7.2f}" for name, iou, accuracy in rows]
        lines.append(f"mIoU {100 * scores.mean_iou:.2f} %, pixel accuracy {100 * scores.pixel_accuracy:.2f} %")
        return "\n".join(lines)

    def attention_table(self) -> str:
        """A line per scale: mean and standard deviation of its weights over the pixels; empty without attention.

        Then the table by size, if that was measured.
        """
        if self.attention is None:
            return ""
        rows = zip(self.attention.scales, self.attention.mean, self.attention.std, strict=True)
        lines = [f"attention weight at scale {s:g}: mean {mean:.4f}, std {std:.4f}" for s, mean, std in rows]
        return "\n".join([*lines, self.by_size.table()] if self.by_size else lines)

    def score(self, metric: str, classes: Sequence[str]) -> float:
        """A score in per cent, by the name that it is published by: "mIoU", or "IoU" and the name of a class.

        Raises InputError for a class that is not among `classes`.
        """
        if metric == "mIoU":
            return 100 * self.confusion.mean_iou
        name = metric.removeprefix("IoU ")
        if name not in classes:
            raise InputError(f"'{name}' is none of the classes ({', '.join(classes)}): correct classes.txt.")
        return 100 * float(self.confusion.iou[list(classes).index(name)])

    def summary(self, classes: Sequence[str]) -> dict:
        """Plain values for a JSON file; scores are fractions, those by class of the classes that count."""
        scores = self.confusion
        counting = [classes[label] for label in scores.classes]
        attention = self.attention and {
            "scales": list(self.attention.scales),
            "mean": self.attention.mean.tolist(),
            "std": self.attention.std.tolist(),
            **({"by_size": self.by_size.summary()} if self.by_size else {}),
        }
        return {
            "images": self.images,
            "mean_iou": scores.mean_iou,
            "pixel_accuracy": scores.pixel_accuracy,
            "mean_class_accuracy": scores.mean_class_accuracy,
            "iou": dict(zip(counting, scores.iou[scores.classes].tolist(), strict=True)),
            "class_accuracy": dict(zip(counting, scores.class_accuracy[scores.classes].tolist(), strict=True)),
            "confusion": scores.counts.tolist(),
            "attention": attention,
        }


def load_model(path: str | os.PathLike, device: str | torch.device = "cpu") -> tuple[nn.Module, dict]:
    """The net of a weights file, ready to segment, and the file's meta.

    Raises InputError if the file describes no complete net, its tensors do not fit the net, or there is no such device.
    """
    weights = load_weights(path)
    if "model" not in weights.meta:
        raise InputError(f"{path} holds initial weights, not a complete net: train from it, and evaluate the result.")
    model = build_model(weights.meta["model"])
    try:
        model.load_state_dict(weights.state_dict)
    except RuntimeError as error:
        reasons = " ".join(str(error).split("\n\t")[1:]).rstrip(". ")
        raise InputError(f"{path} does not fit the net that it describes: {reasons}.") from None
    try:
        return model.to(device).eval(), weights.meta
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"Device {device} cannot be used ({reason}): choose cpu or another.") from None


def class_names(num_classes: int, meta: dict, classes_file: str | os.PathLike | None = None) -> list[str]:
    """Names for the classes of a net: from a file, else from its meta, else VOC's if there are 21, else numbers.

    Raises InputError if the file or the meta has another number of names.
    """
    if classes_file is not None:
        names = read_classes(classes_file)
    elif "classes" in meta:
        names = meta["classes"]
    else:
        names = list(voc.CLASSES) if num_classes == len(voc.CLASSES) else [str(label) for label in range(num_classes)]
    if len(names) != num_classes:
        source = classes_file or "the model file"
        raise InputError(f"{source} names {len(names)} classes, but the net has {num_classes}: give the matching list.")
    return names


def segment_image(model: nn.Module, image: np.ndarray, crop: int = 513) -> Segmentation:
    """Segments one image (H, W, 3) uint8 BGR as the authors' test nets do, on the model's device.

    The image less the mean pixel is padded with 0 at the bottom and right to `crop`, or further to 32k + 1 where it is
    larger; the score map is interpolated to that size (fc8_interp), the largest class taken, and the padding cut off.
    All in exact float32, as in Caffe. Leaves the model in evaluation mode.
    """
    height, width = image.shape[:2]
    size = tuple(max(crop, -(-(side - 1) // 32) * 32 + 1) for side in (height, width))
    padded = torch.zeros(1, 3, *size, device=next(model.parameters()).device)
    padded[0, :, :height, :width] = torch.from_numpy(subtract_mean(image, MEAN_BGR))
    model.eval()
    with torch.inference_mode(), float32_products("ieee"):
        prediction = model(padded)
        labels = ops.segment(prediction.scores, size)[0, :height, :width].cpu().numpy()
        weights = prediction.weights
        if weights is not None:
            weights = ops.interp(weights, size)[0, :, :height, :width]
    return Segmentation(labels, weights)


def evaluate(
    model: nn.Module,
    items: Sequence[Item],
    *,
    crop: int = 513,
    classes: Sequence[str] = (),
    label_folder: str | os.PathLike | None = None,
    by_size: bool = False,
) -> Result:
    """Scores `model` on `items`, on the model's device, under a progress bar.

    As in the authors' evaluation, outputs that `classes` names 'void' (COCO's ids without a category) count in no mean.
    Items without a label file (VOC test) count for nothing in the scores. With `label_folder` every segmentation is
    written to it as ID.png, an index PNG in VOC's palette. `by_size` measures attention weights against the size of
    objects. Raises InputError for a bad file, naming it.
    """
    void = [label for label, name in enumerate(classes) if name == VOID]
    confusion = ConfusionMatrix(model.num_classes, void)
    attention = objects = None
    for item in tqdm(items, desc="evaluating", unit="image"):
        image, truth = read_pair(item, model.num_classes)
        labels, weights = segment_image(model, image, crop)
        confusion.update(truth, labels)
        if weights is not None:
            attention = attention or AttentionStatistics(model.scales)
            attention.update(weights)
            if by_size:
                objects = objects or AttentionBySize(model.scales)
                objects.update(truth, weights)
        elif by_size:
            raise InputError("The net has no attention weights that could be measured by size.")
        if label_folder is not None:
            voc.write_label_png(Path(label_folder) / f"{item.id}.png", labels)
    return Result(len(items), confusion, attention, objects)


def server_folder(out: str | os.PathLike, image_set: str) -> Path:
    """Where VOC's evaluation server wants the segmentations of an image set ("val", "test") in an upload of `out`."""
    return Path(out) / "results" / "VOC2012" / "Segmentation" / f"comp6_{image_set}_cls"
