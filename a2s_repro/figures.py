"""Pictures of what a net sees: the layout of A2S Figure 5."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from a2s_repro.data.images import IGNORE_LABEL
from a2s_repro.data.voc import palette
from a2s_repro.files import replacing
from a2s_repro.segmenter import Segmentation

COLUMN_INCHES = 2.4
COLOUR_MAP = "viridis"


class Row(NamedTuple):
    """An image of the figure: (H, W, 3) uint8 BGR, its ground truth (H, W) uint8, and what a net makes of it."""

    image: np.ndarray
    truth: np.ndarray
    segmentation: Segmentation


def attention_figure(rows: Sequence[Row], scales: Sequence[float], classes: Sequence[str]) -> Figure:
    """One row per image: image, ground truth, prediction and the weight map of each scale, all on one colour bar.

    Labels have VOC's colours, with a legend of the classes that occur. The maps share the range 0 to 1, and each says
    its mean and standard deviation, so that a map without structure shows as such. Without weights (average and max
    merging) there are no maps.
    """
    maps = len(scales) if rows[0].segmentation.weights is not None else 0
    titles = ["image", "ground truth", "prediction", *(f"weights, scale {scale:g}" for scale in scales[:maps])]
    heights = [COLUMN_INCHES * row.image.shape[0] / row.image.shape[1] for row in rows]
    figure = Figure(figsize=(COLUMN_INCHES * len(titles) + 0.6, sum(heights) + 0.3 * len(rows) + 0.8), dpi=120)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False, height_ratios=heights)
    for line, row in zip(axes, rows, strict=True):
        labels, weights = row.segmentation.labels, row.segmentation.weights
        line[0].imshow(row.image[..., ::-1])
        line[1].imshow(palette()[row.truth])
        line[2].imshow(palette()[labels])
        for axis, values in zip(line[3:], [] if weights is None else weights, strict=True):
            axis.imshow(values, vmin=0, vmax=1, cmap=COLOUR_MAP)
            axis.set_xlabel(f"mean {values.mean():.3f}, std {values.std():.3f}", fontsize=7)
        for axis in line:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    if maps:
        bar = ScalarMappable(cmap=COLOUR_MAP)
        figure.colorbar(bar, ax=axes, fraction=0.02, aspect=40, pad=0.01, label="attention weight")
    figure.legend(handles=_legend(rows, classes), loc="outside lower center", ncols=7, fontsize=7, frameon=False)
    return figure


def save_figure(path: str | os.PathLike, figure: Figure) -> None:
    """Writes a figure as PNG."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _legend(rows: Sequence[Row], classes: Sequence[str]) -> list[Patch]:
    shown = np.unique(np.concatenate([np.append(row.truth, row.segmentation.labels) for row in rows]))
    names = [*classes, *[""] * (IGNORE_LABEL - len(classes)), "ignored"]
    return [Patch(facecolor=palette()[label] / 255, edgecolor="grey", label=names[label]) for label in shown]
