"""Decoding of images and label maps as in Caffe, and errors for bad files."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from a2s_repro.data.images import image_size, jpeg_size, read_image, read_label, read_pair, read_photograph
from a2s_repro.data.lists import Item
from a2s_repro.errors import InputError

LABELS = np.array([[0, 1, 2], [4, 3, 255]], np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def png(width, height, bit_depth, colour_type, rows=b""):
    """A PNG file built from chunks (https://www.w3.org/TR/png): Pillow cannot write small depths or false sizes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def photograph(path, **options):
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    return save(path, cv2.resize(noise, (160, 120), interpolation=cv2.INTER_CUBIC), **options)


def test_images_of_any_mode_are_read_as_bgr(tmp_path):
    rgb = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)
    assert (read_image(save(tmp_path / "rgb.png", rgb)) == rgb[..., ::-1]).all()
    rgba = np.dstack([rgb, np.full((1, 2), 128, np.uint8)])
    assert (read_image(save(tmp_path / "rgba.png", rgba)) == rgb[..., ::-1]).all()
    grey = np.array([[7, 9]], np.uint8)
    assert (read_image(save(tmp_path / "grey.png", grey)) == grey[..., None]).all()


@pytest.mark.parametrize("mode", ["L", "P"])
def test_label_values_are_the_stored_indices(tmp_path, mode):
    image = Image.fromarray(LABELS)
    if mode == "P":
        image.putpalette([200, 30, 90] * 256)  # makes it a palette image; every colour the same
    image.save(tmp_path / "label.png")
    assert Image.open(tmp_path / "label.png").mode == mode
    assert (read_label(tmp_path / "label.png", num_classes=5) == LABELS).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0.98, 0.5, 0.05])
def test_truncated_images_are_named(tmp_path, suffix, kept):
    path = photograph(tmp_path / f"x{suffix}")
    encoded = path.read_bytes()
    path.write_bytes(encoded[: int(len(encoded) * kept)])
    with pytest.raises(InputError, match=rf"x\{suffix} .*replace the file"):
        read_image(path)


def test_progressive_jpegs_and_trailing_bytes(tmp_path):
    path = photograph(tmp_path / "x.jpg", progressive=True)
    encoded, pixels = path.read_bytes(), read_image(path)
    path.write_bytes(encoded + b"\xff\xda appended by a camera")
    assert (read_image(path) == pixels).all()
    path.write_bytes(encoded[: encoded.rfind(b"\xff\xda")])
    with pytest.raises(InputError, match="replace the file"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("read", [read_image, lambda path: read_label(path, 5)])
def test_files_that_are_not_images_are_named(tmp_path, read, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=r"x.png is not an image"):
        read(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"absent.png cannot be read"):
        read(tmp_path / "absent.png")


@pytest.mark.parametrize("read", [read_image, lambda path: read_label(path, 5)])
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_absurd_sizes_are_refused_before_decoding(tmp_path, read, side):
    (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 0))
    with pytest.raises(InputError, match=r"bomb.png is .*pixels: scale it down"):
        read(tmp_path / "bomb.png")


def test_truncated_labels_are_named(tmp_path):
    path = save(tmp_path / "label.png", np.random.default_rng(0).integers(0, 5, (80, 90), np.uint8))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"label.png is truncated or damaged"):
        read_label(path, num_classes=5)


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (4, "RGBA"), (2, "LA")])
def test_colour_labels_are_refused_with_the_remedy(tmp_path, channels, mode):
    path = save(tmp_path / "label.png", np.zeros((4, 5, channels), np.uint8))
    with pytest.raises(InputError, match=rf"label.png has {mode} pixels, .*palette or grey PNG"):
        read_label(path, num_classes=5)


def test_grey_labels_of_less_than_8_bits_are_refused(tmp_path):
    path = tmp_path / "label.png"
    path.write_bytes(png(2, 1, 4, 0, rows=b"\x00\x0f"))  # 0 and 15, which decoders scale to 0 and 255
    with pytest.raises(InputError, match=r"label.png has 4-bit grey pixels"):
        read_label(path, num_classes=5)


def test_values_outside_the_classes_are_named(tmp_path):
    path = save(tmp_path / "label.png", LABELS)
    with pytest.raises(InputError, match=r"label.png holds values that are no labels \(3, 4\): 3 classes allow 0"):
        read_label(path, num_classes=3)


def test_jpeg_size_is_read_from_the_header_of_a_complete_file(tmp_path):
    path = photograph(tmp_path / "x.jpg")
    assert jpeg_size(path) == (120, 160)
    encoded = path.read_bytes()
    path.write_bytes(encoded[: len(encoded) // 2])
    with pytest.raises(InputError, match=r"x.jpg is truncated or damaged"):
        jpeg_size(path)
    (photograph(tmp_path / "y.png")).rename(tmp_path / "y.jpg")
    with pytest.raises(InputError, match=r"y.jpg is a PNG file, not the JPEG photograph of that name"):
        jpeg_size(tmp_path / "y.jpg")


def test_sizes_of_image_and_label_must_agree(tmp_path):
    image = save(tmp_path / "x.png", np.zeros((2, 4, 3), np.uint8))
    label = save(tmp_path / "y.png", LABELS)
    with pytest.raises(InputError, match=r"x.png is 4x2 pixels, its label .*y.png 3x2"):
        read_pair(Item("x", image, label), num_classes=5)


ORIENTED = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_data_sets_are_read_as_stored_and_photographs_upright(tmp_path, suffix, orientation):
    """Pillow's exif_transpose turns by the same tag; JPEG and WebP may differ from it in grey levels, not in place."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.kron(ORIENTED, np.ones((8, 8), np.uint8))).convert("RGB")
    image.save(tmp_path / f"x{suffix}", exif=exif)
    stored = read_image(tmp_path / f"x{suffix}")
    assert stored.shape == (32, 48, 3) and np.abs(stored[..., 0].astype(int) - np.asarray(image)[..., 0]).max() < 16
    upright = read_photograph(tmp_path / f"x{suffix}")
    with Image.open(tmp_path / f"x{suffix}") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))[..., ::-1]
    assert upright.orientation == orientation and upright.pixels.shape == expected.shape
    assert np.abs(upright.pixels.astype(int) - expected).max() < 16
    assert image_size(tmp_path / f"x{suffix}") == ((32, 48), orientation)


def test_a_pair_is_the_stored_pixels_and_a_turned_label_is_refused_with_the_reason(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = photograph(tmp_path / "x.jpg", exif=exif)
    stored = Image.fromarray(np.zeros((120, 160), np.uint8))
    stored.save(tmp_path / "x.png")
    assert read_pair(Item("x", image, tmp_path / "x.png"), 2)[0].shape == (120, 160, 3)
    assert jpeg_size(image) == (120, 160)
    stored.rotate(90, expand=True).save(tmp_path / "x.png")
    with pytest.raises(
        InputError, match=r"160x120 pixels as stored, and its EXIF tag turns it to the 120x160 of its label"
    ):
        read_pair(Item("x", image, tmp_path / "x.png"), 2)


def test_damaged_exif_is_no_orientation(tmp_path):
    path = photograph(tmp_path / "x.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert read_photograph(path).orientation == 1


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_orientation_of_a_tiff_is_part_of_its_decoding(tmp_path, orientation):
    """OpenCV and Pillow turn its rows in any case."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(ORIENTED).convert("RGB").save(tmp_path / "x.tiff", exif=exif)
    with Image.open(tmp_path / "x.tiff") as opened:
        opened.load()
        expected = np.asarray(opened)[..., 0]
    assert (read_image(tmp_path / "x.tiff")[..., 0] == expected).all()
    assert (read_photograph(tmp_path / "x.tiff").pixels[..., 0] == expected).all()
    assert image_size(tmp_path / "x.tiff") == (expected.shape, 1)
