"""Attention weights by object size over a whole set, which measures the effect shown by examples in A2S Figure 5."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from a2s_repro.data.images import IGNORE_LABEL
from a2s_repro.runtime import distributed

SMALLEST = 64
"""Minimum area of an object in pixels: one cell of the 8 x 8 grid on which attention weights are computed."""


class AttentionBySize:
    """Areas of the objects of a set and the mean attention weights on them.

    An object is a connected component of one class in the ground truth, with diagonal neighbours; background is a class
    like any other. Touching objects count as one and divided objects as several, because semantic labels do not
    separate instances.
    """

    def __init__(self, scales: Sequence[float]):
        self.scales = tuple(scales)
        self.labels = np.empty(0, np.int64)
        """(n,), class of each object."""
        self.areas = np.empty(0, np.int64)
        """(n,), area of each object in pixels."""
        self.weights = np.empty((0, len(self.scales)))
        """(n, S) float64, mean weight of each scale over each object."""

    def update(self, truth: np.ndarray, weights: np.ndarray) -> None:
        """Adds an image: labels (H, W) uint8, 255 ignored, and attention weights (S, H, W)."""
        from scipy import ndimage  # slow to import

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
        """Adds the objects of all other processes."""
        self.labels, self.areas, self.weights = map(_gathered, (self.labels, self.areas, self.weights))

    @property
    def correlation(self) -> np.ndarray:
        """(S,), Spearman's rank correlation between area and weight over all objects."""
        return np.array([_rank_correlation(self.areas, weights) for weights in self.weights.T])

    @property
    def correlation_within_classes(self) -> np.ndarray:
        """(S,), rank correlation within each class, averaged over objects: the effect of size without that of class."""
        total = np.zeros(len(self.scales))
        for label in np.unique(self.labels):
            of_class = self.labels == label
            correlations = [_rank_correlation(self.areas[of_class], weights[of_class]) for weights in self.weights.T]
            total += of_class.sum() * np.array(correlations)
        return total / max(len(self.labels), 1)

    def quartiles(self) -> list[dict[str, Any]]:
        """Number, areas and mean weights of the objects by quartile of area, from small to large; none is empty."""
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
        """One line per quartile of area with the mean weight at each scale, and the rank correlations."""
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
        """The statistics as plain values for a JSON file."""
        return {
            "objects": len(self.areas),
            "correlation": self.correlation.tolist(),
            "correlation_within_classes": self.correlation_within_classes.tolist(),
            "quartiles": self.quartiles(),
        }


def _gathered(values: np.ndarray) -> np.ndarray:
    """The rows of all processes, concatenated in the order of their ranks."""
    counts = torch.zeros(distributed.world_size(), dtype=torch.int64)
    counts[distributed.rank()] = len(values)
    ends = distributed.sum_(counts).cumsum(0)
    rows = torch.zeros(int(ends[-1]), *values.shape[1:], dtype=torch.from_numpy(values).dtype)
    end = int(ends[distributed.rank()])
    rows[end - len(values) : end] = torch.from_numpy(values)
    return distributed.sum_(rows).numpy()


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation with mean ranks for ties; 0 if one of the two is constant."""
    ranks = [_mean_ranks(values) - (len(values) + 1) / 2 for values in (first, second)]
    norm = np.sqrt(np.prod([np.square(values).sum() for values in ranks]))
    return float(ranks[0] @ ranks[1] / norm) if norm else 0.0


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, with mean ranks for ties: scipy.stats.rankdata without its module, whose import takes seconds."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]
