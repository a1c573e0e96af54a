"""Reads and writes images and label maps; a bad file raises InputError.

Cameras store the rows of their sensor and an orientation tag (EXIF), by which a viewer turns the picture. A data set is
read as stored, because its labels lie on the stored pixels, and so did Caffe. A user's photograph is read upright.
"""

import io
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from a2s_repro.data.lists import Item
from a2s_repro.errors import InputError
from a2s_repro.files import replacing

IGNORE_LABEL = 255
SOURCE = "a2s_source"
"""Keyword of the text in a label map that identifies what it was made of."""
MAX_PIXELS = 2**26  # 67 megapixels; a larger image is refused from its header, before any memory is allocated
MAX_PIXELS_PER_BYTE = {"JPEG": 8 * 64, "PNG": 8 * 1032}
"""Upper bound on the pixels that a byte can encode: JPEG spends at least a bit per block of 64 pixels; PNG's deflate
expands a byte to at most 1032, each of at most 8 pixels."""


ORIENTATION_TAG = 0x0112
TURNS = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}
"""EXIF orientation -> function that turns stored pixels (H, W, ...) upright."""


class Photograph(NamedTuple):
    """An upright picture, (H, W, 3) uint8 BGR, and the EXIF orientation of its file: 1 if nothing was turned."""

    pixels: np.ndarray
    orientation: int = 1


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Decodes an image as Caffe does (OpenCV, IMREAD_COLOR): (H, W, 3) uint8 in B, G, R order, as stored in the file.

    Raises InputError if the file is unreadable, truncated or larger than MAX_PIXELS.
    """
    encoded = _read_bytes(path)
    return _decode(encoded, _open_header(encoded, path), path)


def read_photograph(path: str | os.PathLike) -> Photograph:
    """As `read_image`, but turned upright by the file's EXIF orientation."""
    return decode_photograph(_read_bytes(path), path)


def decode_photograph(encoded: bytes, name: str | os.PathLike = "the encoded image") -> Photograph:
    """As `read_photograph`, but from a file's bytes; `name` stands for the file in error messages."""
    header = _open_header(encoded, name)
    pixels, orientation = _decode(encoded, header, name), _orientation(header)
    return Photograph(np.ascontiguousarray(TURNS[orientation](pixels)), orientation)


def _decode(encoded: bytes, header: Image.Image, path: str | os.PathLike) -> np.ndarray:
    # OpenCV fills the missing part of a truncated file with grey without an error; Pillow raises.
    if _looks_truncated(encoded, header.format):
        _load(header, path)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if image is None:
        raise InputError(f"{path} cannot be decoded as an image: replace the file.")
    return image


def _orientation(header: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, as stored, where the tag is missing or damaged.

    1 for TIFF, too: its tag says how the rows are stored, and every decoder puts them right.
    """
    if header.format == "TIFF":
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow's, about damaged EXIF
            tag = header.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # Pillow's reader of damaged EXIF raises many types
        return 1
    return tag if tag in TURNS else 1


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
            f"{name} has {kind} pixels, not class indices: save these as an 8-bit palette or grey PNG."
        )
    labels = np.asarray(_load(label, name))
    wrong = np.unique(labels[(labels >= num_classes) & (labels != ignore_label)])
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
    check_same_size(item, image.shape[:2], labels.shape)
    return image, labels


def check_same_size(item: Item, of_image: tuple[int, int], of_label: tuple[int, int]) -> None:
    """Raises InputError if the (rows, columns) of an item's image and label map differ."""
    if of_image == of_label:
        return
    sizes = [f"{columns}x{rows}" for rows, columns in (of_image, of_label)]
    if of_image == of_label[::-1] and image_size(item.image)[1] > 4:
        raise InputError(
            f"{item.image} is {sizes[0]} pixels as stored, and its EXIF tag turns it to the {sizes[1]} of its label "
            f"{item.label}: data sets are read as stored; turn the pixels and remove the tag (`mogrify -auto-orient`)."
        )
    raise InputError(f"{item.image} is {sizes[0]} pixels, its label {item.label} {sizes[1]}: they must agree.")


def write_label(
    path: str | os.PathLike, labels: np.ndarray, palette: np.ndarray | None = None, source: str | None = None
) -> None:
    """Writes (H, W) uint8 labels atomically as a PNG of class indices.

    The PNG is grey, as Caffe reads it, or has the `palette` (256, 3) uint8. `source` is kept in it for `label_source`.
    """
    image, texts = Image.fromarray(labels), PngInfo()
    if palette is not None:
        image.putpalette(palette.tobytes())
    if source is not None:
        texts.add_text(SOURCE, source)
    with replacing(path) as temporary:
        image.save(temporary, pnginfo=texts)


def label_source(path: str | os.PathLike) -> str | None:
    """The `source` that `write_label` has kept in a label map; None for other files, and for damaged ones."""
    try:
        return _open_header(_read_bytes(path), path).info.get(SOURCE)
    except InputError:
        return None


def image_size(path: str | os.PathLike) -> tuple[tuple[int, int], int]:
    """((rows, columns) as stored, EXIF orientation) of an image, from its header.

    Raises InputError if the file is unreadable, truncated or larger than MAX_PIXELS.
    """
    header = _whole_header(path)
    return (header.height, header.width), _orientation(header)


def jpeg_size(path: str | os.PathLike) -> tuple[int, int]:
    """(rows, columns) of a JPEG photograph as stored, from its header.

    Raises InputError as `image_size` does, and if the file is of another format.
    """
    header = _whole_header(path)
    if header.format != "JPEG":
        raise InputError(
            f"{path} is a {header.format} file, not the JPEG photograph of that name: check that images and labels are "
            "not swapped."
        )
    return header.height, header.width


def _whole_header(path: str | os.PathLike) -> Image.Image:
    """The header of an image that is not truncated."""
    encoded = _read_bytes(path)
    header = _open_header(encoded, path)
    if _looks_truncated(encoded, header.format):
        _load(header, path)
    return header


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
