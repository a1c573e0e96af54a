"""Evaluation of a net on a set of images by the PASCAL VOC protocol."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from a2s_repro.data import voc
from a2s_repro.data.images import IGNORE_LABEL, read_pair, write_label
from a2s_repro.data.lists import VOID, Item
from a2s_repro.errors import InputError
from a2s_repro.inference.attention_by_depth import AttentionByDepth
from a2s_repro.inference.attention_by_size import AttentionBySize
from a2s_repro.inference.crf import CRF
from a2s_repro.inference.segmenter import Segmentation, Segmenter, in_batches
from a2s_repro.models.base import WEIGHING
from a2s_repro.runtime import distributed
from a2s_repro.runtime.pools import ahead, threads
from a2s_repro.runtime.progress import Progress

BACKGROUND = "background"
READERS = 4
"""Number of threads that read images and labels."""
NO_PIXEL = f"there is no pixel to score: every label is {IGNORE_LABEL}, which is ignored"


class ConfusionMatrix:
    """Confusion matrix of a whole set, and the scores of the VOC protocol (the authors' MyVOCevalseg.m) as fractions.

    `counts` is (C, C) int64, rows ground truth, columns prediction. Counts are summed over all images before any
    division. Means include every class, with IoU 0 for a class that neither occurs nor is predicted; only
    `void_classes`, outputs of the net without a class in the data set, are excluded.
    """

    def __init__(self, num_classes: int, void_classes: Sequence[int] = ()):
        self.counts = np.zeros((num_classes, num_classes), np.int64)
        self.classes = np.setdiff1d(np.arange(num_classes), void_classes)
        """Labels included in means, ascending."""

    def update(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Adds an image: two label maps of the same shape, uint8; pixels with truth 255 are ignored.

        Raises InputError for a label beyond the classes.
        """
        valid = truth != IGNORE_LABEL
        truth, predicted = truth[valid], predicted[valid]
        classes = len(self.counts)
        if max(truth.max(initial=0), predicted.max(initial=0)) >= classes:
            raise InputError(f"A label map to score holds a value beyond the {classes} classes: correct the labels.")
        pairs = truth.astype(np.int64) * classes + predicted
        self.counts += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def merge(self) -> None:
        """Adds the counts of all other processes."""
        distributed.sum_(torch.from_numpy(self.counts))

    @property
    def pixels(self) -> int:
        """Number of pixels scored."""
        return int(self.counts.sum())

    @property
    def absent(self) -> np.ndarray:
        """Labels of the means without a true pixel."""
        return self.classes[self.counts.sum(1)[self.classes] == 0]

    @property
    def unpredicted(self) -> np.ndarray:
        """Labels of the means that were predicted for no pixel."""
        return self.classes[self.counts.sum(0)[self.classes] == 0]

    @property
    def iou(self) -> np.ndarray:
        """(C,) float64, intersection over union of truth and prediction."""
        correct = np.diag(self.counts)
        return correct / np.maximum(self.counts.sum(0) + self.counts.sum(1) - correct, 1)

    @property
    def class_accuracy(self) -> np.ndarray:
        """(C,) float64, fraction of a class's pixels that are predicted correctly (recall)."""
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
        self._sums = np.zeros((3, len(self.scales)))  # of 1, of the weights minus 1/S, and of their squares

    def update(self, weights: np.ndarray) -> None:
        """Adds the weights (S, H, W) of an image."""
        centred = weights.astype(np.float64).reshape(len(weights), -1) - 1 / len(self.scales)
        self._sums += np.full(len(weights), centred.shape[1]), centred.sum(1), np.square(centred).sum(1)

    def merge(self) -> None:
        """Adds the sums of all other processes."""
        distributed.sum_(torch.from_numpy(self._sums))

    @property
    def pixels(self) -> int:
        return int(self._sums[0, 0])

    @property
    def mean(self) -> np.ndarray:
        return self._sums[1] / self._sums[0] + 1 / len(self.scales)

    @property
    def std(self) -> np.ndarray:
        first, second = self._sums[1:] / self._sums[0]
        return np.sqrt(np.maximum(second - first**2, 0))


@dataclass(frozen=True)
class Result:
    """Scores of a net on a set.

    `attention` is None if the merge has no weights, `by_size` and `by_depth` unless requested.
    """

    images: int
    confusion: ConfusionMatrix
    attention: AttentionStatistics | None
    by_size: AttentionBySize | None = None
    by_depth: AttentionByDepth | None = None

    def table(self, classes: Sequence[str]) -> str:
        """One line per class with IoU and accuracy in per cent, without void classes, and the means.

        Classes without a true pixel, which count 0 in the mean as in VOC's protocol, and classes that were never
        predicted are marked. `classes` holds the names of all C classes.
        """
        scores = self.confusion
        if not scores.pixels:
            return NO_PIXEL
        rows = [(classes[label], scores.iou[label], scores.class_accuracy[label]) for label in scores.classes]
        rows.append(("mean", scores.mean_iou, scores.mean_class_accuracy))
        width = max(len(name) for name, *_ in rows)
        lines = [f"{'class':<{width}}    IoU %   acc %"]
        marks = [*map(self.mark, scores.classes), ""]
        for (name, iou, accuracy), mark in zip(rows, marks, strict=True):
            lines.append(f"{name:<{width}}  {100 * iou:7.2f} {100 * accuracy:7.2f}  {mark}".rstrip())
        lines.append(f"mIoU {100 * scores.mean_iou:.2f} %, pixel accuracy {100 * scores.pixel_accuracy:.2f} %")
        if count := len(scores.absent):
            lines.append(f"The mean counts {count} of {len(scores.classes)} classes as 0 that have no true pixel.")
        return "\n".join(lines)

    def mark(self, label: int) -> str:
        """A remark on a class that has no true pixel, or that was never predicted; empty for others."""
        remarks = {"no true pixel": self.confusion.absent, "never predicted": self.confusion.unpredicted}
        return ", ".join(remark for remark, labels in remarks.items() if label in labels)

    def attention_table(self) -> str:
        """One line per scale with mean and standard deviation of its weights over the pixels; empty without attention.

        The tables by size and depth follow if measured.
        """
        if self.attention is None:
            return ""
        rows = zip(self.attention.scales, self.attention.mean, self.attention.std, strict=True)
        lines = [f"attention weight at scale {s:g}: mean {mean:.4f}, std {std:.4f}" for s, mean, std in rows]
        return "\n".join([*lines, *(part.table() for part in (self.by_size, self.by_depth) if part)])

    def score(self, metric: str, classes: Sequence[str]) -> float:
        """A score in per cent by its published name: "mIoU", "pixel accuracy", or "IoU" and a class name.

        Raises InputError for an unknown class, and if no pixel was scored.
        """
        if not self.confusion.pixels:
            raise InputError(f"{NO_PIXEL}: correct the list or the labels.")
        if metric == "mIoU":
            return 100 * self.confusion.mean_iou
        if metric == "pixel accuracy":
            return 100 * self.confusion.pixel_accuracy
        name = metric.removeprefix("IoU ")
        if name not in classes:
            raise InputError(f"'{name}' is not one of the classes ({', '.join(classes)}): correct classes.txt.")
        return 100 * float(self.confusion.iou[list(classes).index(name)])

    def summary(self, classes: Sequence[str]) -> dict:
        """The result as plain values for a JSON file; scores are fractions, without void classes.

        Scores are None if no pixel was scored.
        """
        scores = self.confusion
        counting = [classes[label] for label in scores.classes]
        of_classes = [scores.iou, scores.class_accuracy]
        iou, accuracy = (
            [values[label] if scores.pixels else None for label in scores.classes] for values in of_classes
        )
        means = scores.mean_iou, scores.pixel_accuracy, scores.mean_class_accuracy
        mean_iou, pixel_accuracy, mean_class_accuracy = means if scores.pixels else (None, None, None)
        attention = self.attention and {
            "scales": list(self.attention.scales),
            "mean": self.attention.mean.tolist(),
            "std": self.attention.std.tolist(),
            **({"by_size": self.by_size.summary()} if self.by_size else {}),
            **({"by_depth": self.by_depth.summary()} if self.by_depth else {}),
        }
        return {
            "images": self.images,
            "pixels": scores.pixels,
            "mean_iou": mean_iou,
            "pixel_accuracy": pixel_accuracy,
            "mean_class_accuracy": mean_class_accuracy,
            "iou": dict(zip(counting, iou, strict=True)),
            "class_accuracy": dict(zip(counting, accuracy, strict=True)),
            "no_true_pixel": [classes[label] for label in scores.absent],
            "never_predicted": [classes[label] for label in scores.unpredicted],
            "confusion": scores.counts.tolist(),
            "attention": attention,
        }


def evaluate(
    model: nn.Module,
    items: Sequence[Item],
    *,
    pad_to: int = 513,
    crf: CRF | None = None,
    short_sides: Sequence[int] = (),
    factors: Sequence[float] = (),
    classes: Sequence[str] = (),
    label_folder: str | os.PathLike | None = None,
    first_label: int = 0,
    by_size: bool = False,
    precision: str = "fp32",
    batch_size: int = 1,
    seen: Callable[[Item, np.ndarray, np.ndarray, Segmentation], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Result:
    """Scores `model` on `items` on the model's device; shows a progress bar.

    `pad_to`, `short_sides`, `factors` and `precision` are passed to Segmenter; `crf` refines the labels. As in the
    authors' evaluation, outputs named 'void' in `classes` (COCO's unused ids) are excluded from means. Items without a
    label file (VOC test) do not affect the scores. With `label_folder` every segmentation is written there as ID.png,
    an index PNG in VOC's palette. The first class has the value `first_label`, and the others follow: with 1 the PNGs
    are grey and hold 1 to 150, as those of ADE20K's server. `by_size` measures attention weights against the sizes
    of objects, and against the depth of pixels inside them, where a class of the name 'background' has no objects.

    `seen` is called with every item, its image (H, W, 3) uint8 BGR, its truth (H, W) and its segmentation, in the order
    of the items. Once `stopped` returns True no further image is read, and the result is that of the images so far.

    Up to `batch_size` images of one padded size pass the net together. Threads read ahead, and one refines, counts and
    writes in the order of the items while the net runs.

    Several processes share the items, and all return the scores of the whole set. Raises InputError naming a bad file,
    and for `by_size` with a net without attention.
    """
    if not 0 <= first_label <= 256 - model.num_classes:
        raise InputError(f"the first label is {first_label}; {model.num_classes} labels from it must lie in 0 to 255.")
    segmenter = Segmenter(model, pad_to=pad_to, short_sides=short_sides, factors=factors, precision=precision)
    void = [label for label, name in enumerate(classes) if name == VOID]
    confusion = ConfusionMatrix(model.num_classes, void)
    background = [label for label, name in enumerate(classes) if name == BACKGROUND]
    attention, measured = AttentionStatistics(model.scales), ()
    if by_size:
        measured = AttentionBySize(model.scales), AttentionByDepth(model.scales, [*void, *background])
    share = items[distributed.rank() :: distributed.world_size()]
    with distributed.failing_together():
        if by_size and model.merge not in WEIGHING:
            raise InputError("the net has no attention weights to measure by object size: leave out by_size.")

        def read(item: Item) -> tuple[Item, np.ndarray, np.ndarray]:
            return item, *read_pair(item, model.num_classes)

        def score(segmented: tuple[tuple[Item, np.ndarray, np.ndarray], Segmentation]) -> None:
            (item, image, truth), segmentation = segmented
            if crf is not None:
                segmentation = segmentation.refined(image, crf)
            confusion.update(truth, segmentation.labels)
            if segmentation.weights is not None:
                attention.update(segmentation.weights)
            for part in measured:
                part.update(truth, segmentation.weights)
            if label_folder is not None:
                values, colours = segmentation.labels + np.uint8(first_label), None if first_label else voc.palette()
                write_label(Path(label_folder) / f"{item.id}.png", values, colours)
            if seen is not None:
                seen(item, image, truth, segmentation)

        with (
            threads(READERS) as readers,
            threads(1) as scorer,
            Progress(title="evaluating", unit="image", total=len(share), shown=distributed.is_main()) as bar,
        ):
            wanted = takewhile(lambda _: not stopped(), share)
            pairs = (reading.result() for _, reading in ahead(read, wanted, readers, 2 * max(READERS, batch_size)))
            segmented = in_batches(segmenter, pairs, batch_size, scores=crf is not None)
            for _, scoring in ahead(score, segmented, scorer, 2 * batch_size):
                scoring.result()
                bar.update()
    for part in (confusion, attention, *measured):
        part.merge()
    return Result(len(items), confusion, attention if attention.pixels else None, *measured)


def server_folder(out: str | os.PathLike, image_set: str) -> Path:
    """Folder in `out` for the segmentations of an image set ("val", "test"), as VOC's evaluation server requires it."""
    return Path(out) / "results" / "VOC2012" / "Segmentation" / f"comp6_{image_set}_cls"
