"""The result for one image: its label map, what belongs to it, and how it is kept and shown."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from a2s_repro.data.voc import write_label_png
from a2s_repro.errors import InputError, not_written
from a2s_repro.files import replacing
from a2s_repro.inference.crf import CRF, refine
from a2s_repro.inference.overlays import overlay

MOST_NAMED = 4
"""Maximum number of classes that a repr names."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """A net's result for one image, at the size (H, W) of the image; C classes, S scales."""

    labels: np.ndarray
    """(H, W) uint8."""
    weights: np.ndarray | None = None
    """(S, H, W) float32 attention weights; None if the merge has none."""
    scores: np.ndarray | None = None
    """(C, H, W) float32 class scores before any softmax; None unless requested."""
    recalibration: np.ndarray | None = None
    """(C, H, W) float32 recalibration of the scores; None without scores or where the net has none."""
    orientation: int = 1
    """EXIF orientation by which a file's picture was turned upright before it was segmented; 1 if it was not turned."""
    image: np.ndarray | None = None
    """(H, W, 3) uint8 BGR, the image as it was segmented; None in results of `Segmenter.start`."""
    classes: Sequence[str] = ()
    """Names of the C classes; empty where they are not known."""

    def refined(self, image: np.ndarray, crf: CRF, threads: int | None = None) -> "Segmentation":
        """The same result with labels refined by a dense CRF from the scores and `image`, (H, W, 3) uint8 BGR."""
        labels = refine(np.ascontiguousarray(image[:, :, ::-1]), self.scores, crf, threads=threads)
        return dataclasses.replace(self, labels=labels)

    def without_scores(self) -> "Segmentation":
        return dataclasses.replace(self, scores=None, recalibration=None)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the labels as VOC does, a palette PNG of class indices, or with the suffix .npz all arrays.

        Raises InputError for another suffix, and if the file cannot be written.
        """
        path = Path(path)
        if path.suffix not in (".png", ".npz"):
            raise InputError(f"{path}: give a .png for the labels, or an .npz for labels, weights and scores.")
        try:
            if path.suffix == ".png":
                write_label_png(path, self.labels)
            else:
                names = ("labels", "weights", "scores", "recalibration")
                arrays = {name: getattr(self, name) for name in names}
                with replacing(path) as temporary:
                    np.savez(temporary, **{name: values for name, values in arrays.items() if values is not None})
        except OSError as error:
            raise not_written(path, error) from error

    def overlay(self) -> Image.Image:
        """The image blended equally with the labels in VOC's colours.

        Raises InputError if the result holds no image.
        """
        if self.image is None:
            raise InputError("the segmentation holds no image to draw on: use the result of a call of the Segmenter.")
        return Image.fromarray(np.ascontiguousarray(overlay(self.image, self.labels)[..., ::-1]))

    def __repr__(self) -> str:
        """Size, classes by their share of the pixels, and what else is there."""
        labels, counts = np.unique(self.labels, return_counts=True)
        largest = np.argsort(-counts, kind="stable")
        shares = [f"{self._name(labels[i])} {100 * counts[i] / self.labels.size:.0f} %" for i in largest[:MOST_NAMED]]
        if len(labels) > MOST_NAMED:
            shares.append(f"{len(labels) - MOST_NAMED} more")
        others = [f"attention over {len(self.weights)} scales"] if self.weights is not None else []
        others += ["scores"] if self.scores is not None else []
        height, width = self.labels.shape
        return f"<Segmentation {height}x{width}: {', '.join(shares)}{''.join(f'; {part}' for part in others)}>"

    def _name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else f"class {label}"
