"""Overlays and attention panels drawn with OpenCV, (H, W, 3) uint8 BGR: fast enough for every frame of a video."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from a2s_repro.data.voc import palette

if TYPE_CHECKING:
    from a2s_repro.inference.segmentation import Segmentation

PANEL = 320
"""Longer side of a picture in a panel, in pixels."""

TITLE = 24
"""Height of the title above a picture, in pixels."""


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The image blended equally with the labels in VOC's colours."""
    return cv2.addWeighted(image, 0.5, cv2.applyColorMap(labels, _colours()), 0.5, 0)


@functools.cache
def _colours() -> np.ndarray:
    """VOC's colours (256, 1, 3) uint8 BGR, as OpenCV takes a map of colours."""
    return np.ascontiguousarray(palette()[:, None, ::-1])


def attention_panel(
    image: np.ndarray, segmentation: Segmentation, scales: Sequence[float], truth: np.ndarray | None = None
) -> np.ndarray:
    """The image, its overlay, and each scale's weights from 0 (dark) to 1 (light) with their mean, in one row.

    truth: (H, W) uint8, for an overlay of its own before that of the labels. A segmentation may lack weights.
    """
    parts = {"image": image}
    if truth is not None:
        parts["truth"] = overlay(image, truth)
    parts["labels"] = overlay(image, segmentation.labels)
    maps = () if segmentation.weights is None else segmentation.weights
    for scale, weights in zip(scales, maps, strict=len(maps) > 0):
        levels = np.rint(255 * weights).astype(np.uint8)
        parts[f"scale {scale:g}: mean {weights.mean():.2f}"] = cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)
    return np.hstack([_titled(title, picture) for title, picture in parts.items()])


def legend(classes: Sequence[str]) -> np.ndarray:
    """The colour and the name of each class, one per line."""
    picture = np.full((TITLE * len(classes), PANEL, 3), 255, np.uint8)
    for label, (name, colour) in enumerate(zip(classes, palette()[:, ::-1].tolist(), strict=False)):
        top = TITLE * label
        cv2.rectangle(picture, (4, top + 4), (36, top + TITLE - 4), colour, cv2.FILLED)
        _write(picture, name, (46, top + TITLE - 7))
    return picture


def _titled(title: str, picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = PANEL / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    shrinking = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    panel = np.full((TITLE + size[1] + 2, max(size[0], PANEL * 5 // 8) + 4, 3), 255, np.uint8)
    panel[TITLE : TITLE + size[1], 2 : 2 + size[0]] = cv2.resize(picture, size, interpolation=shrinking)
    _write(panel, title, (2, TITLE - 7))
    return panel


def _write(picture: np.ndarray, text: str, place: tuple[int, int]) -> None:
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
