"""What the page can show of one image: its picture, labels, and what the net computes at points of a coarse grid."""

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
"""Classes of which a point has the scores: those with the highest ones."""
LONGEST_SIDE = 640
"""Larger pictures are shrunk to it, and the grid's step grows with them."""
GRID = 8
FRACTION = 65535
"""Stands for 1 in the 16-bit integers that hold fractions."""
JPEG_QUALITY = 85


class Example(NamedTuple):
    """An image (H, W) as it is put into the page.

    The maps of the grid (h, w) hold the values at the pixels (y * step, x * step); K classes are kept of each point,
    highest score first. Scores are softmax probabilities; fractions are integers in units of 1 / FRACTION.
    """

    id: str
    iou: float | None
    """Mean over the classes that occur or are predicted; None where nothing is labelled."""
    size: tuple[int, int]
    """(H, W)."""
    step: int
    picture: np.ndarray
    """(H', W', 3) uint8 BGR, the image or a smaller copy."""
    truth: np.ndarray
    """(H', W') uint8, 255 where nothing is known."""
    labels: np.ndarray
    """(H', W') uint8, the prediction."""
    top_classes: np.ndarray
    """(K, h, w) uint8."""
    top_scores: np.ndarray
    """(K, h, w) uint16 fractions."""
    scale_classes: np.ndarray
    """(S, h, w) uint8, what each scale alone would predict."""
    scale_scores: np.ndarray
    """(S, h, w) uint16 fractions, how sure it is."""
    weights: np.ndarray | None
    """(S, h, w) uint16 fractions, attention weights."""
    winner: np.ndarray | None
    """(h, w) uint8, the index of the scale that a net that merges by max takes the prediction from."""
    recalibration: np.ndarray | None
    """(K, h, w) float32, of the kept classes."""

    def plain(self) -> dict[str, Any]:
        """Values for JSON: arrays as `packed`, the picture as the address of an embedded JPEG."""
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        jpeg = cv2.imencode(".jpg", self.picture, quality)[1].tobytes()
        fields = self._asdict() | {"picture": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()}
        return {name: packed(value) if isinstance(value, np.ndarray) else value for name, value in fields.items()}


def example(segmenter: Segmenter, item: Item, iou: float | None) -> Example:
    """Segments and inspects an image, of which the `iou` is known."""
    model = segmenter.model
    image, truth = read_pair(item, model.num_classes)
    stride = math.ceil(max(image.shape[:2]) / LONGEST_SIDE)
    found = inspect(segmenter, image, GRID)
    found = Inspection(*(maps if maps is None else maps[..., ::stride, ::stride] for maps in found))
    scores, classes = found.scores.softmax(0).topk(min(TOP, model.num_classes), 0)
    scale_scores, scale_classes = found.scale_scores.softmax(1).max(1)
    return Example(
        id=item.id,
        iou=iou,
        size=image.shape[:2],
        step=GRID * stride,
        picture=_shrunk(image, stride, cv2.INTER_AREA),
        truth=_shrunk(truth, stride, cv2.INTER_NEAREST),
        labels=_shrunk(segmenter(image).labels, stride, cv2.INTER_NEAREST),
        top_classes=_bytes(classes),
        top_scores=_fractions(scores),
        scale_classes=_bytes(scale_classes),
        scale_scores=_fractions(scale_scores),
        weights=None if found.weights is None else _fractions(found.weights),
        winner=_bytes(found.winner) if model.merge == "max" else None,
        recalibration=None if found.recalibration is None else found.recalibration.gather(0, classes).numpy(),
    )


def packed(array: np.ndarray) -> dict[str, Any]:
    """An array as plain values: {"shape", "dtype", "data"}, data being its bytes, little-endian, zlib and base64."""
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
