"""Pixels in and out of nets: pictures in all their forms, and batches padded to a net's grid."""

import os
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from a2s_repro.data.images import Photograph, decode_photograph, read_photograph
from a2s_repro.data.normalization import NORMALIZATIONS, net_input
from a2s_repro.errors import InputError

Picture = str | os.PathLike | bytes | Image.Image | np.ndarray | Tensor
"""A file, its bytes, a Pillow image, or pixels in a form accepted by `as_bgr`."""


def fitting(sides: Iterable[int], step: int) -> tuple[int, ...]:
    """The sides, rounded up to k * step + 1, the grid of a net."""
    return tuple(-(-(side - 1) // step) * step + 1 for side in sides)


def padded(
    images: Sequence[np.ndarray], size: tuple[int, int], normalization: str, device: torch.device | str = "cpu"
) -> Tensor:
    """A net's input (N, 3, *size), on a device, from images (H, W, 3) uint8 BGR no larger than `size`.

    Each image is normalised and padded with 0, the mean colour, at the bottom and right. The input is in NCHW, whatever
    the net's layout: how its first convolution rounds depends on it.
    """
    device = torch.device(device)
    pixels = torch.zeros(len(images), *size, 3, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for canvas, image in zip(pixels.numpy(), images, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
    sizes = [image.shape[:2] for image in images]
    pixels = pixels.to(device, non_blocking=True)
    return net_input(pixels, sizes, NORMALIZATIONS[normalization]).contiguous()


def unpadded(maps: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The part (..., H, W) of padded maps that belongs to an image (H, W, 3)."""
    return np.ascontiguousarray(maps[..., : image.shape[0], : image.shape[1]])


def as_bgr(image: Picture, order: str | None = None) -> np.ndarray:
    """A picture as (H, W, 3) uint8 BGR.

    Args:
        image: a file or its bytes, decoded by OpenCV and turned upright by its EXIF orientation; a Pillow image, as it
            is; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or a tensor (H, W), (1, H, W), (3, H, W) or
            (4, H, W). Pixels are uint8, or uint16, of which the upper 8 bits are used, as in OpenCV. One channel is
            grey; a fourth channel, alpha, is dropped.
        order: "bgr" or "rgb", the order of the channels of an array or a tensor. Without it they are taken as BGR,
            OpenCV's order, with a warning.

    Raises InputError naming a file that cannot be read, and for pixels of another shape or dtype.
    """
    return photograph(image, order).pixels


def photograph(image: Picture, order: str | None = None) -> Photograph:
    """As `as_bgr`, with the EXIF orientation by which a file was turned upright."""
    if order not in (None, "bgr", "rgb"):
        raise InputError(f"order is '{order}'; it is 'bgr' or 'rgb'.")
    if isinstance(image, str | os.PathLike):
        return read_photograph(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_photograph(bytes(image))
    if isinstance(image, Image.Image):
        return Photograph(_pixels(*_of_pillow(image)))
    return Photograph(_pixels(image, order))


def _of_pillow(image: Image.Image) -> tuple[np.ndarray, str]:
    """The pixels of a Pillow image and their order: grey of 8 or 16 bits as it is, everything else as RGB."""
    if image.mode in ("I", "F"):
        raise InputError(f"a Pillow image of mode {image.mode} has no range of grey levels: convert it to L or RGB.")
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16), "rgb"
    return np.asarray(image if image.mode == "L" else image.convert("RGB")), "rgb"


def _pixels(image: np.ndarray | Tensor, order: str | None) -> np.ndarray:
    if not isinstance(image, np.ndarray | Tensor):
        raise InputError(
            f"an image is given as {type(image).__name__}: give a file, its bytes, a Pillow image, pixels or a tensor."
        )
    given = f"{tuple(image.shape)} {str(image.dtype).removeprefix('torch.')}"
    if isinstance(image, Tensor):
        image = image.detach().movedim(0, -1) if image.dim() == 3 else image.detach()
        image = image.cpu().numpy()
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.size == 0:
        raise InputError(
            f"an image is given as {given}; give uint8 or uint16 pixels, an array (H, W, 3) or a tensor (3, H, W)."
        )
    if image.shape[2] == 1:
        return np.repeat(image, 3, 2)
    if order is None:
        warnings.warn(
            'pixels are taken as B, G, R, the order of OpenCV: give order="bgr", or order="rgb" for those of Pillow, '
            "torchvision and others.",
            stacklevel=4,
        )
    return np.ascontiguousarray(image[:, :, 2::-1] if order == "rgb" else image[:, :, :3])
