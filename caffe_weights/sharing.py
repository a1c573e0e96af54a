"""The copies of a shared layer. A share-net's snapshot stores every branch's copy, named for the branch's scale."""

from collections.abc import Collection

import numpy as np

from caffe_weights.files import Layer

SCALE_OF_SUFFIX = {"_res05": 0.5, "_res075": 0.75, "_res025": 0.25}
"""Name suffix of a branch -> its scale, in the order of the branches in the authors' share-nets (scale 1 first)."""


def shared_base(name: str, names: Collection[str]) -> tuple[str, float] | None:
    """(base layer, scale) if `name` is the name of another layer in `names` plus a branch's suffix, else None."""
    for suffix, scale in SCALE_OF_SUFFIX.items():
        base = name.removesuffix(suffix)
        if base != name and base in names:
            return base, scale
    return None


def same_blobs(a: Layer, b: Layer) -> bool:
    """Whether two layers hold the same blobs: dtype, shape and every bit."""
    return len(a.blobs) == len(b.blobs) and all(
        x.dtype == y.dtype and x.shape == y.shape and np.array_equal(_bits(x), _bits(y))
        for x, y in zip(a.blobs, b.blobs, strict=True)
    )


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")
