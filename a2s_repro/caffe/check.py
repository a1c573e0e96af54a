"""Runs a Caffe file in OpenCV's importer, an independent implementation, and compares the scores with ours."""

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from a2s_repro import ops
from a2s_repro.caffe.deploy import deploy_prototxt, output_blob
from a2s_repro.checkpoint.trained import Trained
from a2s_repro.checkpoint.weights import Weights
from a2s_repro.errors import InputError, first_line
from a2s_repro.inference.pixels import as_bgr, fitting, padded
from a2s_repro.inference.segmenter import load_model
from a2s_repro.runtime.precision import float32_products

TOLERANCE = 1e-4
"""Largest deviation that rounding explains, relative to the largest score; 1e-5 was measured."""


class Check(NamedTuple):
    """Comparison of the score maps (C, H, W) of OpenCV and of this package, at the size of the padded picture."""

    deviation: float
    """Largest difference, relative to the largest score."""
    differing: float
    """Fraction of the picture's pixels with another label."""
    size: tuple[int, int]
    """Rows and columns of the padded picture."""

    def __str__(self) -> str:
        height, width = self.size
        return (
            f"OpenCV {cv2.__version__} and a2s_repro on the picture, padded to {width}x{height}: the scores differ "
            f"by at most {self.deviation:.1e} of the largest score, {100 * self.differing:.2g} % of the labels differ"
        )


def check_in_opencv(caffemodel: str | os.PathLike, weights: Weights, picture: str | os.PathLike) -> Check:
    """Compares a `.caffemodel`, run by OpenCV with our deploy prototxt, and the weights of the same net, run here.

    The picture is padded to the grid of the net alone.

    Raises InputError if the weights are not a complete net, OpenCV cannot run it, or the picture cannot be read.
    """
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        raise InputError(
            f"OpenCV {cv2.__version__} does not read Caffe's files: pip install 'opencv-python-headless>=4.12,<5'."
        )
    model, meta = load_model(Trained(Path(caffemodel), weights))
    image = as_bgr(picture)
    size = fitting(image.shape[:2], model.grid_step)
    batch = padded([image], size, model.normalization)
    with tempfile.TemporaryDirectory() as folder:
        prototxt = Path(folder, "deploy.prototxt")
        prototxt.write_text(deploy_prototxt(model, meta.get("classifier") or model.classifier_layer, size))
        try:
            peer = cv2.dnn.readNetFromCaffe(str(prototxt), os.fspath(caffemodel))
            peer.enableWinograd(False)  # less exact than a sum
            peer.setInput(batch.numpy())
            theirs = peer.forward(output_blob(model))[0]
        except cv2.error as error:
            raise InputError(f"OpenCV {cv2.__version__} cannot run {caffemodel}: {first_line(error)}.") from error
    with torch.inference_mode(), float32_products("ieee"):
        ours = ops.interp(model(batch).scores, size)[0].numpy()
    height, width = image.shape[:2]
    labels = [scores[:, :height, :width].argmax(0) for scores in (ours, theirs)]
    deviation = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    return Check(deviation, float(np.mean(labels[0] != labels[1])), size)
