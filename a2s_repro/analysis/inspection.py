"""Contribution of each scale to the segmentation of an image."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from a2s_repro import ops
from a2s_repro.errors import InputError
from a2s_repro.inference.segmenter import Segmenter
from a2s_repro.runtime.precision import float32_products


class Inspection(NamedTuple):
    """Maps of one image on the CPU, all float32 on one grid (h, w); C classes, S scales in descending order."""

    scores: Tensor
    """(C, h, w) merged score map."""
    scale_scores: Tensor
    """(S, C, h, w) scores of each scale before the merge."""
    weights: Tensor | None
    """(S, h, w) attention weights; None if the merge has none."""
    recalibration: Tensor | None
    """(C, h, w) recalibration of each class's scores; None where the net has none."""

    @property
    def winner(self) -> Tensor:
        """(h, w) int64, index of the scale with the largest score for the predicted class.

        In a net that merges by max the prediction is this scale's: its weight is 1 and the others' weights are 0.
        """
        predicted = self.scores.argmax(0).expand(len(self.scale_scores), 1, -1, -1)
        return self.scale_scores.gather(1, predicted).argmax(0)[0]


def inspect(segmenter: Segmenter, image: np.ndarray, step: int = 8) -> Inspection:
    """Runs a net on an image (H, W, 3) uint8 BGR in one pass, with the segmenter's padding.

    Returns the values at every `step`-th pixel from the top left one; step is 1, 2, 4 or 8. The net's maps, on grids of
    4 or 8 pixels at scale 1, are interpolated as in the net, so that points of the grid keep the map's values.

    Raises InputError for an exported net.
    """
    size = segmenter.padded_size(image)
    grid = tuple((side - 1) // step + 1 for side in size)
    rows, columns = ((side - 1) // step + 1 for side in image.shape[:2])

    def sampled(maps: Tensor | None) -> Tensor | None:
        return None if maps is None else ops.interp(maps, grid)[0, :, :rows, :columns].cpu()

    segmenter.model.eval()
    with torch.inference_mode(), float32_products("ieee"):
        prediction = segmenter.model(segmenter.padded([image], size))
        if not prediction.scale_scores:
            raise InputError("an exported net has no score maps of its scales: give the weights that it was made of.")
        return Inspection(
            scores=sampled(prediction.scores),
            scale_scores=torch.stack([sampled(scores) for scores in prediction.scale_scores]),
            weights=sampled(prediction.weights),
            recalibration=sampled(prediction.recalibration),
        )
