"""Data of one image for the page: picture, labels, and the net's values at the points of a coarse grid."""

import base64
import math
import zlib
from typing import Any, NamedTuple

import cv2
import numpy as np
from torch import Tensor

from a2s_repro.analysis.inspection import Inspection, inspect
from a2s_repro.data.images import read_pair
from a2s_repro.data.lists import Item
from a2s_repro.inference.segmenter import Segmenter

TOP = 5
"""Number of classes stored per point: those with the highest scores."""
LONGEST_SIDE = 640
"""Longest side of a picture in pixels; larger ones are shrunk, and the grid's step grows accordingly."""
GRID = 8
FRACTION = 65535
"""Integer that represents 1 in uint16 fractions."""
JPEG_QUALITY = 85


class Example(NamedTuple):
    """An image (H, W) and its maps, as stored in the page.

    The maps of the grid (h, w) hold the values at the pixels (y * step, x * step); K classes are stored per point,
    highest score first. Scores are softmax probabilities; fractions are integers in units of 1 / FRACTION.
    """

    id: str
    iou: float | None
    """Mean IoU over the classes that occur or are predicted; None for an unlabelled image."""
    size: tuple[int, int]
    """(H, W)."""
    step: int
    picture: np.ndarray
    """(H', W', 3) uint8 BGR, the image or a smaller copy."""
    truth: np.ndarray
    """(H', W') uint8 ground truth, 255 where not labelled."""
    labels: np.ndarray
    """(H', W') uint8, the prediction."""
    top_classes: np.ndarray
    """(K, h, w) uint8."""
    top_scores: np.ndarray
    """(K, h, w) uint16 fractions."""
    scale_classes: np.ndarray
    """(S, h, w) uint8, the prediction of each scale alone."""
    scale_scores: np.ndarray
    """(S, h, w) uint16 fractions, the scores of these predictions."""
    weights: np.ndarray | None
    """(S, h, w) uint16 fractions, attention weights."""
    winner: np.ndarray | None
    """(h, w) uint8, index of the winning scale in a net that merges by max."""
    recalibration: np.ndarray | None
    """(K, h, w) float32 recalibration of the stored classes."""

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON: arrays in the form of `packed`, the picture as the data URL of a JPEG."""
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        jpeg = cv2.imencode(".jpg", self.picture, quality)[1].tobytes()
        fields = self._asdict() | {"picture": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()}
        return {name: packed(value) if isinstance(value, np.ndarray) else value for name, value in fields.items()}


def example(segmenter: Segmenter, item: Item, iou: float | None) -> Example:
    """Segments and inspects an image whose `iou` has been computed."""
    model = segmenter.model
    image, truth = read_pair(item, model.num_classes)
    stride = math.ceil(max(image.shape[:2]) / LONGEST_SIDE)
    inspection = inspect(segmenter, image, GRID)
    inspection = Inspection(*(maps if maps is None else maps[..., ::stride, ::stride] for maps in inspection))
    scores, classes = inspection.scores.softmax(0).topk(min(TOP, model.num_classes), 0)
    scale_scores, scale_classes = inspection.scale_scores.softmax(1).max(1)
    return Example(
        id=item.id,
        iou=iou,
        size=image.shape[:2],
        step=GRID * stride,
        picture=_shrunk(image, stride, cv2.INTER_AREA),
        truth=_shrunk(truth, stride, cv2.INTER_NEAREST),
        labels=_shrunk(segmenter(image, order="bgr").labels, stride, cv2.INTER_NEAREST),
        top_classes=_bytes(classes),
        top_scores=_fractions(scores),
        scale_classes=_bytes(scale_classes),
        scale_scores=_fractions(scale_scores),
        weights=None if inspection.weights is None else _fractions(inspection.weights),
        winner=_bytes(inspection.winner) if model.merge == "max" else None,
        recalibration=None if inspection.recalibration is None else inspection.recalibration.gather(0, classes).numpy(),
    )


def packed(array: np.ndarray) -> dict[str, Any]:
    """An array as plain values {"shape", "dtype", "data"}; data is base64 of zlib of its little-endian bytes."""
    data = zlib.compress(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes(), 9)
    return {"shape": list(array.shape), "dtype": array.dtype.name, "data": base64.b64encode(data).decode()}


def _shrunk(image: np.ndarray, stride: int, interpolation: int) -> np.ndarray:
    if stride == 1:
        return image
    height, width = (math.ceil(side / stride) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=interpolation)


def _bytes(indices: Tensor) -> np.ndarray:
    return indices.numpy().astype(np.uint8)


def _fractions(values: Tensor) -> np.ndarray:
    return (values.numpy().astype(np.float64) * FRACTION).round().astype(np.uint16)
