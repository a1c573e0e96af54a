"""Which scales a net attends to on small and on large objects: over a whole set what A2S Figure 5 shows on examples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from scipy.stats import rankdata

from a2s_repro.data.images import IGNORE_LABEL
from a2s_repro.runtime import distributed

SMALLEST = 64
"""Pixels of the smallest object that counts: attention weights are made on a grid of 8 x 8 pixels."""


class AttentionBySize:
    """Areas of the objects of a set and the mean attention weights on them.

    An object is a connected component of the ground truth of one class, diagonal neighbours included, the background as
    any other class. Objects that touch are one, those cut in two are two: semantic labels say no more.
    """

    def __init__(self, scales: Sequence[float]):
        self.scales = tuple(scales)
        self.labels = np.empty(0, np.int64)
        """(n,), the class of each object."""
        self.areas = np.empty(0, np.int64)
        """(n,), its pixels."""
        self.weights = np.empty((0, len(self.scales)))
        """(n, S) float64, the mean weight of each scale over it."""

    def update(self, truth: np.ndarray, weights: np.ndarray) -> None:
        """Adds an image: labels (H, W) uint8, 255 ignored, and attention weights (S, H, W)."""
        maps = weights.astype(np.float64)
        for label in np.setdiff1d(truth, [IGNORE_LABEL]):
            objects, count = ndimage.label(truth == label, structure=np.ones((3, 3)))
            numbers = np.arange(1, count + 1)
            areas = np.bincount(objects.ravel())[1:]
            means = np.stack([ndimage.mean(weight, objects, numbers) for weight in maps], 1)
            counts = areas >= SMALLEST
            self.labels = np.append(self.labels, np.full(counts.sum(), label))
            self.areas = np.append(self.areas, areas[counts])
            self.weights = np.append(self.weights, means[counts], 0)

    def merge(self) -> None:
        """Adds the objects of the other processes."""
        self.labels, self.areas, self.weights = map(_gathered, (self.labels, self.areas, self.weights))

    @property
    def correlation(self) -> np.ndarray:
        """(S,), Spearman's rank correlation of area and weight over all objects."""
        return np.array([_rank_correlation(self.areas, weights) for weights in self.weights.T])

    @property
    def correlation_within_classes(self) -> np.ndarray:
        """(S,), the same within each class, averaged over the objects: what is due to size, not to what is large."""
        total = np.zeros(len(self.scales))
        for label in np.unique(self.labels):
            of_class = self.labels == label
            correlations = [_rank_correlation(self.areas[of_class], weights[of_class]) for weights in self.weights.T]
            total += of_class.sum() * np.array(correlations)
        return total / max(len(self.labels), 1)

    def quartiles(self) -> list[dict[str, Any]]:
        """The objects in four parts from small to large, empty ones left out: their number, areas and mean weights."""
        parts = np.array_split(np.argsort(self.areas, kind="stable"), 4)
        return [
            {
                "objects": len(part),
                "smallest": int(self.areas[part].min()),
                "largest": int(self.areas[part].max()),
                "weights": self.weights[part].mean(0).tolist(),
            }
            for part in parts
            if len(part)
        ]

    def table(self) -> str:
        """A line per quartile of area with the mean weight at each scale, and the rank correlations."""
        rows = [("pixels of an object  objects", [f"scale {scale:g}" for scale in self.scales])]
        for part in self.quartiles():
            sizes = f"{part['smallest']} to {part['largest']}"
            rows.append((f"{sizes:<19}  {part['objects']:>7}", [f"{weight:.4f}" for weight in part["weights"]]))
        for head, values in (
            ("rank correlation with area", self.correlation),
            ("the same within classes", self.correlation_within_classes),
        ):
            rows.append((head, [f"{value:+.3f}" for value in values]))
        return "\n".join(f"{head:<28}" + "".join(f"{value:>13}" for value in values) for head, values in rows)

    def summary(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "objects": len(self.areas),
            "correlation": self.correlation.tolist(),
            "correlation_within_classes": self.correlation_within_classes.tolist(),
            "quartiles": self.quartiles(),
        }


def _gathered(values: np.ndarray) -> np.ndarray:
    """The rows of all processes, one process after the other."""
    counts = torch.zeros(distributed.world_size(), dtype=torch.int64)
    counts[distributed.rank()] = len(values)
    ends = distributed.sum_(counts).cumsum(0)
    rows = torch.zeros(int(ends[-1]), *values.shape[1:], dtype=torch.from_numpy(values).dtype)
    end = int(ends[distributed.rank()])
    rows[end - len(values) : end] = torch.from_numpy(values)
    return distributed.sum_(rows).numpy()


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, ties by their mean rank; 0 where one does not vary."""
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (first, second)]
    norm = np.sqrt(np.prod([np.square(values).sum() for values in ranks]))
    return float(ranks[0] @ ranks[1] / norm) if norm else 0.0
