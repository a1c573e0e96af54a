"""Copies of a shared layer: a share-net's snapshot stores one copy per stream, named after the stream's scale."""

import re

import numpy as np

from caffe_weights.files import Layer

SUFFIX_OF_SCALE = {1: "", 0.5: "_res05", 0.75: "_res075", 0.25: "_res025"}
"""Scale of a stream -> suffix of its layers' names, in the order of the streams in the authors' share-nets."""

_SCALE_OF_SUFFIX = {suffix: scale for scale, suffix in SUFFIX_OF_SCALE.items() if suffix}
_STREAM = re.compile(rf"(.+)({'|'.join(_SCALE_OF_SUFFIX)})((?:_c\d)?)")


def stream_of(name: str) -> tuple[str, float]:
    """A layer's name without its stream's suffix, and the scale of the stream: `fc6_res05` -> (`fc6`, 0.5).

    In DeepLab v2's classifier the suffix precedes the branch: `fc1_voc12_res05_c0` -> (`fc1_voc12_c0`, 0.5).
    """
    if parts := _STREAM.fullmatch(name):
        return parts[1] + parts[3], _SCALE_OF_SUFFIX[parts[2]]
    return name, 1


def same_blobs(a: Layer, b: Layer) -> bool:
    """Whether two layers' blobs agree in dtype, shape and every bit."""
    return len(a.blobs) == len(b.blobs) and all(
        x.dtype == y.dtype and x.shape == y.shape and np.array_equal(_bits(x), _bits(y))
        for x, y in zip(a.blobs, b.blobs, strict=True)
    )


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")
