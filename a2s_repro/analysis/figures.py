"""Figures of predictions and attention weights, in the layouts of A2S Figures 4, 5 and 6."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from a2s_repro.analysis.inspection import inspect
from a2s_repro.data.images import IGNORE_LABEL, read_pair
from a2s_repro.data.lists import Item
from a2s_repro.data.voc import palette
from a2s_repro.errors import InputError, check_known
from a2s_repro.files import replacing
from a2s_repro.inference.segmenter import Segmentation, Segmenter
from a2s_repro.models.base import WEIGHING

LAYOUTS = ("weights", "comparison", "winner", "recalibration")
COLUMN_INCHES = 2.4
COLOUR_MAP = "viridis"
RECALIBRATED = 4
"""Number of classes whose recalibration is shown: the most frequent in ground truth and predictions."""


class Row(NamedTuple):
    """An image of the figure, (H, W, 3) uint8 BGR, its ground truth (H, W) uint8, and its segmentations."""

    image: np.ndarray
    truth: np.ndarray
    segmentation: Segmentation
    baseline: Segmentation | None = None
    """Segmentation by another net."""
    winner: np.ndarray | None = None
    """(H, W), index of the scale that wins max-pooling in the other net."""


class Panel(NamedTuple):
    """A picture of the figure: (H, W, 3) uint8 RGB, (H, W) uint8 labels, or a float map (H, W)."""

    title: str
    pixels: np.ndarray


def figure_rows(
    items: Sequence[Item], layout: str, segmenter: Segmenter, baseline: Segmenter | None = None
) -> list[Row]:
    """Segments the images of a figure with the nets of its layout.

    Raises InputError for a bad file, or if the given nets do not suit the layout.
    """
    check_known("layout", layout, LAYOUTS)
    two_nets = layout in ("comparison", "winner")
    if two_nets and baseline is None:
        raise InputError(f"the layout {layout} compares two nets: give the other one as the baseline.")
    if baseline is not None and not two_nets:
        raise InputError(f"the layout {layout} shows one net: leave out the baseline, or choose comparison or winner.")
    if baseline is not None and baseline.model.num_classes != segmenter.model.num_classes:
        raise InputError("the net and its baseline have different numbers of classes: give nets of one data set.")
    if layout == "winner":
        if segmenter.model.merge not in WEIGHING:
            raise InputError("the layout winner needs a net with attention weights, but the net has none.")
        scales = segmenter.model.scales
        if baseline.model.merge != "max" or baseline.model.scales != scales:
            shown = " ".join(f"{scale:g}" for scale in scales)
            raise InputError(f"the layout winner needs a baseline that merges the scales {shown} by max.")
    rows = []
    for item in items:
        image, truth = read_pair(item, segmenter.model.num_classes)
        segmentation = segmenter(image, scores=layout == "recalibration", order="bgr")
        if layout == "recalibration" and segmentation.recalibration is None:
            raise InputError(
                "the layout recalibration needs a net whose head recalibrates the scores, by its weights: an exported "
                "net has no recalibration."
            )
        winner = inspect(baseline, image, 1).winner.numpy() if layout == "winner" else None
        rows.append(Row(image, truth, segmentation, baseline and baseline(image, order="bgr"), winner))
    return rows


def attention_figure(
    rows: Sequence[Row], scales: Sequence[float], classes: Sequence[str], layout: str = "weights"
) -> Figure:
    """Draws one row per image: image, ground truth, predictions, and maps with a common colour bar.

    The layouts:

    * weights: the prediction and the attention weights of each scale; no maps for average and max merging.
    * comparison (Figures 5 and 6): as weights, with the baseline's prediction before ours.
    * winner (Figure 4): max-pooling's weights, which are 1 where the scale has the largest score for the predicted
      class and 0 elsewhere; then the attention weights.
    * recalibration: the prediction, and the recalibration maps of the most frequent classes.

    Labels have VOC's colours, with a legend of the classes that occur. Maps range from 0 to 1, or, for recalibration by
    biases, symmetrically about 0. The mean and standard deviation of a map are printed below it, so that a map without
    structure is recognised.
    """
    panels = [_panels(row, rows, scales, classes, layout) for row in rows]
    maps = [panel.pixels for line in panels for panel in line if panel.pixels.dtype != np.uint8]
    bound = max((float(abs(values).max()) for values in maps), default=0)
    biases = layout == "recalibration" and any(values.min() < 0 or values.max() > 1 for values in maps)
    limits = Normalize(-bound, bound) if biases else Normalize(0, 1)

    heights = [COLUMN_INCHES * row.image.shape[0] / row.image.shape[1] for row in rows]
    columns = len(panels[0])
    figure = Figure(figsize=(COLUMN_INCHES * columns + 0.6, sum(heights) + 0.3 * len(rows) + 0.8), dpi=120)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for line, pictures in zip(axes, panels, strict=True):
        for axis, (_, pixels) in zip(line, pictures, strict=True):
            if pixels.dtype != np.uint8:
                axis.imshow(pixels, norm=limits, cmap=COLOUR_MAP)
                axis.set_xlabel(f"mean {pixels.mean():.3f}, std {pixels.std():.3f}", fontsize=7)
            else:
                axis.imshow(pixels if pixels.ndim == 3 else palette()[pixels])
            axis.set(xticks=[], yticks=[])
    for axis, panel in zip(axes[0], panels[0], strict=True):
        axis.set_title(panel.title, fontsize=9)
    if maps:
        label = "recalibration" if layout == "recalibration" else "weight" if layout == "winner" else "attention weight"
        bar = ScalarMappable(limits, cmap=COLOUR_MAP)
        figure.colorbar(bar, ax=axes, fraction=0.02, aspect=40, pad=0.01, label=label)
    labels = [panel.pixels for line in panels for panel in line if panel.pixels.dtype == np.uint8]
    legend = _legend([pixels for pixels in labels if pixels.ndim == 2], classes)
    figure.legend(handles=legend, loc="outside lower center", ncols=7, fontsize=7, frameon=False)
    return figure


FIGURE_SUFFIXES = (".png", ".pdf", ".svg", ".eps", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


TEXT_AS_TEXT = {"svg.fonttype": "none", "pdf.fonttype": 42, "ps.fonttype": 42}


def save_figure(path: str | os.PathLike, figure: Figure, dpi: int = 120) -> None:
    """Writes a figure in the format of the path's suffix, one of FIGURE_SUFFIXES; `dpi` is its pixels per inch.

    PDF, EPS and SVG hold text as text, PDF and EPS with TrueType fonts, as journals demand. Raises InputError for
    another suffix.
    """
    suffix = figure_suffix(path)
    with matplotlib.rc_context(TEXT_AS_TEXT), replacing(path) as temporary:
        figure.savefig(temporary, format=suffix.removeprefix("."), dpi=dpi)


def figure_suffix(path: str | os.PathLike) -> str:
    """The suffix of a figure's file in small letters. Raises InputError unless it is one of FIGURE_SUFFIXES."""
    suffix = Path(path).suffix.lower()
    if suffix not in FIGURE_SUFFIXES:
        raise InputError(f"{path}: a figure's name ends in one of {' '.join(FIGURE_SUFFIXES)}.")
    return suffix


def _panels(row: Row, rows: Sequence[Row], scales: Sequence[float], classes: Sequence[str], layout: str) -> list[Panel]:
    """The panels of a row."""
    segmentation = row.segmentation
    panels = [Panel("image", row.image[..., ::-1]), Panel("ground truth", row.truth)]
    if layout == "recalibration":
        maps = [
            Panel(f"recalibration, {classes[label]}", segmentation.recalibration[label]) for label in _most_common(rows)
        ]
        return [*panels, Panel("prediction", segmentation.labels), *maps]
    attention = segmentation.weights
    weights = [] if attention is None else _per_scale("weights", scales, attention)
    if layout == "winner":
        one_hot = np.stack([row.winner == index for index in range(len(scales))]).astype(np.float32)
        return [*panels, *_per_scale("max-pooling", scales, one_hot), *_per_scale("attention", scales, attention)]
    if layout == "comparison":
        return [*panels, Panel("baseline", row.baseline.labels), Panel("ours", segmentation.labels), *weights]
    return [*panels, Panel("prediction", segmentation.labels), *weights]


def _per_scale(name: str, scales: Sequence[float], maps: np.ndarray) -> list[Panel]:
    return [Panel(f"{name}, scale {scale:g}", values) for scale, values in zip(scales, maps, strict=True)]


def _most_common(rows: Sequence[Row]) -> list[int]:
    """The most frequent labels of all rows, counted over ground truth and predictions."""
    counts = sum(np.bincount(np.append(row.truth, row.segmentation.labels), minlength=256) for row in rows)
    counts[IGNORE_LABEL] = 0
    order = np.argsort(-counts, kind="stable")[:RECALIBRATED]
    return [int(label) for label in order if counts[label]]


def _legend(maps: Sequence[np.ndarray], classes: Sequence[str]) -> list[Patch]:
    """A legend of the labels that occur in `maps`."""
    shown = np.unique(np.concatenate([labels.ravel() for labels in maps]))
    names = [*classes, *[""] * (IGNORE_LABEL - len(classes)), "ignored"]
    return [Patch(facecolor=palette()[label] / 255, edgecolor="grey", label=names[label]) for label in shown]
