"""Reads and writes images and label maps; a bad file raises InputError."""

import io
import os
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from a2s_repro.data.lists import Item
from a2s_repro.errors import InputError
from a2s_repro.files import replacing

IGNORE_LABEL = 255
MAX_PIXELS = 2**26  # 67 megapixels; a larger image is refused from its header, before any memory is allocated
MAX_PIXELS_PER_BYTE = {"JPEG": 8 * 64, "PNG": 8 * 1032}
"""Upper bound on the pixels that a byte can encode: JPEG spends at least a bit per block of 64 pixels; PNG's deflate
expands a byte to at most 1032, each of at most 8 pixels."""


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Decodes an image as Caffe does (OpenCV, IMREAD_COLOR): (H, W, 3) uint8 in B, G, R order.

    Raises InputError if the file is unreadable, truncated or larger than MAX_PIXELS.
    """
    encoded = _read_bytes(path)
    header = _open_header(encoded, path)
    # OpenCV fills the missing part of a truncated file with grey without an error; Pillow raises.
    if _looks_truncated(encoded, header.format):
        _load(header, path)
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"{path} cannot be decoded as an image: replace the file.")
    return image


def read_label(path: str | os.PathLike, num_classes: int, ignore_label: int = IGNORE_LABEL) -> np.ndarray:
    """Decodes a label map: (H, W) uint8 class indices, 0..num_classes-1 or `ignore_label`.

    A palette image yields its indices (OpenCV, and so Caffe, would yield luminance), an 8-bit grey image its values.
    Raises InputError if the file is unreadable, truncated, larger than MAX_PIXELS, of another kind (a colour image is
    not a label map), or holds any other value.
    """
    return decode_label(_read_bytes(path), path, num_classes, ignore_label)


def decode_label(
    encoded: bytes, name: str | os.PathLike, num_classes: int, ignore_label: int = IGNORE_LABEL
) -> np.ndarray:
    """As `read_label`, but from a file's bytes; `name` stands for the file in error messages."""
    label = _open_header(encoded, name)
    shallow_grey = label.format == "PNG" and label.mode == "L" and encoded[24] < 8  # Pillow scales these to 0..255
    if label.mode not in ("P", "L") or shallow_grey:
        kind = f"{encoded[24]}-bit grey" if shallow_grey else label.mode
        raise InputError(
            f"{name} is a {kind} image, not a label map: save class indices as an 8-bit palette or grey PNG."
        )
    labels = np.asarray(_load(label, name))
    values = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    wrong = values[(values >= num_classes) & (values != ignore_label)]
    if wrong.size:
        listed = ", ".join(map(str, wrong[:8])) + (", ..." if wrong.size > 8 else "")
        raise InputError(
            f"{name} holds values that are no labels ({listed}): {num_classes} classes allow 0..{num_classes - 1} and "
            f"{ignore_label} (ignore) only; correct the file or the number of classes."
        )
    return labels


def read_pair(item: Item, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The image (H, W, 3) and label map (H, W) of an item; without a label file the map is all IGNORE_LABEL.

    Raises InputError as `read_image` and `read_label` do, and if the two differ in size.
    """
    image = read_image(item.image)
    if item.label is None:
        return image, np.full(image.shape[:2], IGNORE_LABEL, np.uint8)
    labels = read_label(item.label, num_classes)
    if labels.shape != image.shape[:2]:
        sizes = [f"{width}x{height}" for height, width in (image.shape[:2], labels.shape)]
        raise InputError(f"{item.image} is {sizes[0]} pixels, its label {item.label} {sizes[1]}: they must agree.")
    return image, labels


def write_label(path: str | os.PathLike, labels: np.ndarray, palette: np.ndarray | None = None) -> None:
    """Writes (H, W) uint8 labels atomically as a PNG of class indices.

    The PNG is grey, as Caffe reads it, or has the `palette` (256, 3) uint8.
    """
    image = Image.fromarray(labels)
    if palette is not None:
        image.putpalette(palette.tobytes())
    with replacing(path) as temporary:
        image.save(temporary)


def jpeg_size(path: str | os.PathLike) -> tuple[int, int]:
    """(rows, columns) of a JPEG photograph, from its header.

    Raises InputError if the file is unreadable, truncated, larger than MAX_PIXELS or of another format.
    """
    encoded = _read_bytes(path)
    header = _open_header(encoded, path)
    if header.format != "JPEG":
        raise InputError(
            f"{path} is a {header.format} file, not the JPEG photograph of that name: check that images and labels are "
            "not swapped."
        )
    if _looks_truncated(encoded, header.format):
        _load(header, path)
    return header.height, header.width


def _read_bytes(path: str | os.PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def _open_header(encoded: bytes, path: str | os.PathLike) -> Image.Image:
    """Opens an image without decoding it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            image = Image.open(io.BytesIO(encoded))
    except Image.DecompressionBombError:
        raise InputError(f"{path} is larger than {MAX_PIXELS} pixels: scale it down.") from None
    except Exception:  # as in _load
        raise InputError(f"{path} is not an image, or its header is damaged: replace the file.") from None
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"{path} is {image.width}x{image.height}, more than {MAX_PIXELS} pixels: scale it down.")
    if image.width * image.height > MAX_PIXELS_PER_BYTE.get(image.format, MAX_PIXELS) * len(encoded):
        raise InputError(
            f"{path} claims {image.width}x{image.height} pixels, too many for its {len(encoded)} bytes: "
            "replace the file."
        )
    return image


def _load(image: Image.Image, path: str | os.PathLike) -> Image.Image:
    try:
        image.load()
    except Exception:  # Pillow's decoders raise many types: OSError, SyntaxError, struct.error
        raise InputError(f"{path} is truncated or damaged: replace the file.") from None
    return image


def _looks_truncated(encoded: bytes, file_format: str | None) -> bool:
    """Whether the end of the image may be missing: a cheap check without false negatives."""
    if file_format == "JPEG":
        end_of_image, start_of_scan = b"\xff\xd9", b"\xff\xda"
        return encoded.rfind(end_of_image) < encoded.rfind(start_of_scan)
    if file_format == "PNG":
        return b"IEND" not in encoded[-64:]
    return True
