"""Attention weights by the depth of a pixel inside its object, over a whole set."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from a2s_repro.data.images import IGNORE_LABEL
from a2s_repro.runtime import distributed

DEEPEST = 255
"""Depth in pixels at which all deeper pixels are counted."""
STEPS = 1000
"""Number of steps into which weights are rounded."""
BANDS = (1, 3, 6, 10, 15, 20, 30, DEEPEST + 1)
"""Limits in pixels of the bands of depth in the table."""


class AttentionByDepth:
    """Counts of the pixels of a set by depth and attention weight.

    The depth of a pixel is its distance in pixels to the nearest pixel with another label; the border of the image is
    no edge. Pixels of `excluded` labels, as of a background, are not counted. Depths are cut to whole pixels and
    weights rounded to 1/1000, so that counts of any number of pixels have a fixed size.
    """

    def __init__(self, scales: Sequence[float], excluded: Sequence[int] = ()):
        self.scales = tuple(scales)
        self.excluded = (*excluded, IGNORE_LABEL)
        self.counts = np.zeros((len(self.scales), DEEPEST + 1, STEPS + 1), np.int64)
        """(S, depths, weights), numbers of pixels."""

    def update(self, truth: np.ndarray, weights: np.ndarray) -> None:
        """Adds an image: labels (H, W) uint8, and attention weights (S, H, W)."""
        from scipy import ndimage  # slow to import

        depths = np.zeros(truth.shape, np.int64)
        for label in np.setdiff1d(truth, self.excluded):
            inside = truth == label
            if not inside.all():  # else it has no edge
                depths[inside] = np.minimum(ndimage.distance_transform_edt(inside)[inside], DEEPEST)
        counted = depths > 0
        steps = np.rint(weights * STEPS).astype(np.int64)
        for counts, step in zip(self.counts, steps, strict=True):
            cells = depths[counted] * (STEPS + 1) + step[counted]
            counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)

    def merge(self) -> None:
        """Adds the counts of all other processes."""
        distributed.sum_(torch.from_numpy(self.counts))

    @property
    def correlation(self) -> np.ndarray:
        """(S,), Spearman's rank correlation between depth and weight over all counted pixels."""
        return np.array([_rank_correlation(counts) for counts in self.counts])

    def bands(self) -> list[dict[str, Any]]:
        """Limits of depth, number of pixels and mean weights of each band; none is empty."""
        parts = [(low, high, self.counts[:, low:high].sum(1)) for low, high in pairwise(BANDS)]
        return [
            {
                "from": low,
                "below": high,
                "pixels": int(counts[0].sum()),
                "weights": (counts @ np.arange(STEPS + 1) / counts.sum(1) / STEPS).tolist(),
            }
            for low, high, counts in parts
            if counts.any()
        ]

    def table(self) -> str:
        """One line per band of depth with the mean weight at each scale, and the rank correlation."""
        rows = [("pixels to the edge    pixels", [f"scale {scale:g}" for scale in self.scales])]
        for band in self.bands():
            low, high = band["from"], band["below"]
            limits = f"{low} and more" if high > DEEPEST else f"{low} to {high}"
            rows.append((f"{limits:<18}{band['pixels']:>10}", [f"{weight:.4f}" for weight in band["weights"]]))
        rows.append(("rank correlation with depth", [f"{value:+.3f}" for value in self.correlation]))
        return "\n".join(f"{head:<28}" + "".join(f"{value:>13}" for value in values) for head, values in rows)

    def summary(self) -> dict[str, Any]:
        """The statistics as plain values for a JSON file."""
        return {"correlation": self.correlation.tolist(), "bands": self.bands()}


def _rank_correlation(counts: np.ndarray) -> float:
    """Spearman's rank correlation of the two indices of a table of counts, with mean ranks for ties; 0 if one of the
    two is constant.
    """
    total = counts.sum()
    margins = counts.sum(1), counts.sum(0)
    first, second = (np.cumsum(margin) - margin / 2 - total / 2 for margin in margins)
    norm = np.sqrt((margins[0] @ first**2) * (margins[1] @ second**2))
    return float(first @ counts @ second / norm) if norm else 0.0
