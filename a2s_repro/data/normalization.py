"""From 8-bit pixels to a net's input, on the device of the net: normalisation, padding."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MEAN_BGR = np.array([104.008, 116.669, 122.675], np.float32)
"""The ImageNet mean that the authors' Caffe nets subtract (transform_param.mean_value)."""

TORCHVISION_MEAN_RGB = np.array([0.485, 0.456, 0.406], np.float32)
TORCHVISION_STD_RGB = np.array([0.229, 0.224, 0.225], np.float32)
"""Standard deviation of images in [0, 1] for torchvision's ImageNet nets; TORCHVISION_MEAN_RGB is the mean."""


@dataclass(frozen=True, eq=False)
class Normalization:
    """Normalisation of grey levels per channel, in float32: x - mean, or with a deviation (x / 255 - mean) / std.

    Every step is one correctly rounded operation, so CPUs and GPUs give the same bits.
    """

    mean: np.ndarray
    """(3,) float32, in the order of the input's channels."""
    std: np.ndarray | None = None
    """(3,) float32, of images in [0, 1]."""
    rgb: bool = False
    """Whether the input's channels are R, G, B; pixels are B, G, R."""

    def of_batch(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 BGR -> (N, 3, H, W) float32 in channels_last, on the pixels' device."""
        pixels = pixels.flip(3) if self.rgb else pixels
        rows = pixels.flatten(2).to(torch.float32)  # (N, H, 3 W): torch's loops over 3 channels are far slower
        if self.std is not None:
            rows /= torch.full((1,), 255.0, device=rows.device)  # by a number torch would multiply by 1 / 255
        rows -= self._of_row(self.mean, pixels)
        if self.std is not None:
            rows /= self._of_row(self.std, pixels)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 BGR -> (3, H, W) float32, contiguous."""
        return self.of_batch(torch.from_numpy(np.ascontiguousarray(image))[None])[0].contiguous().numpy()

    @staticmethod
    def _of_row(values: np.ndarray, pixels: Tensor) -> Tensor:
        """(3 W,), the channels' values for each pixel of a row."""
        return torch.from_numpy(values).to(pixels.device, non_blocking=True).repeat(pixels.size(2))


NORMALIZATIONS = {
    "caffe": Normalization(MEAN_BGR),
    "torchvision": Normalization(TORCHVISION_MEAN_RGB, TORCHVISION_STD_RGB, rgb=True),
}
"""Normalizations by the names used in a net's `normalization`. Padding is 0 after either, which is the mean colour."""


def subtract_mean(image: np.ndarray, mean: np.ndarray = MEAN_BGR) -> np.ndarray:
    """(H, W, 3) uint8 -> (3, H, W) float32 minus the mean, in float32 as in Caffe."""
    return Normalization(mean)(image)


def net_input(
    pixels: Tensor,
    sizes: Iterable[tuple[int, int]],
    normalization: Normalization,
    mirrored: Iterable[bool] = itertools.repeat(False),
) -> Tensor:
    """A net's input (N, 3, H, W), float32 in channels_last, from padded pixels (N, H, W, 3), uint8 BGR.

    Args:
        sizes: rows and columns of each image; beyond them, at the bottom and right, the input is 0.
        normalization: applied to the image.
        mirrored: whether each image is already flipped left to right; its padding is then at the left.
    """
    values = normalization.of_batch(pixels)
    for image, (rows, columns), is_mirrored in zip(values, sizes, mirrored, strict=False):
        image[:, rows:] = 0
        padding = slice(0, image.shape[2] - columns) if is_mirrored else slice(columns, None)
        image[:, :rows, padding] = 0
    return values
