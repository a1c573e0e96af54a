"""A small synthetic data set in VOC layout: textured shapes whose sizes vary tenfold.

A class is a shape with a texture. Both grow with the object, so a net must handle scale. Hue alone is not enough: the
hues of the classes overlap, and the background contains all of them.
"""

import colorsys
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from a2s_repro.data.images import IGNORE_LABEL
from a2s_repro.data.lists import write_lines
from a2s_repro.data.voc import write_label_png
from a2s_repro.errors import InputError
from a2s_repro.files import replacing

CLASSES = ("background", "disc", "square", "triangle", "ring", "cross")

SMALLEST, LARGEST = 7.0, 70.0  # radius in pixels
HEIGHTS, WIDTHS = (160, 200), (200, 240)
OVERSAMPLING = 2
ATTEMPTS = 30
"""Number of places that are tried for an object."""


def make_demo_data(out: str | os.PathLike, *, num_train: int = 60, num_val: int = 20, seed: int = 0) -> Path:
    """Draws pictures and labels into `out`, determined by the arguments alone, and returns `out` as a Path.

    Writes JPEGImages/*.jpg, SegmentationClass/*.png (palette), ImageSets/Segmentation/{train,val}.txt and classes.txt.
    Raises InputError for counts below 1 or a negative seed.
    """
    if min(num_train, num_val) < 1 or seed < 0:
        raise InputError("The demo set needs at least 1 picture in each part and a seed of at least 0.")
    out = Path(out)
    for split, count in (("train", num_train), ("val", num_val)):
        names = [f"{split}_{number:04}" for number in range(count)]
        for number, name in enumerate(names):
            picture, labels = draw_scene(np.random.default_rng((seed, split == "val", number)))
            with replacing(out / "JPEGImages" / f"{name}.jpg") as temporary:
                Image.fromarray(picture).save(temporary, quality=92)
            write_label_png(out / "SegmentationClass" / f"{name}.png", labels)
        write_lines(out / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    write_lines(out / "classes.txt", CLASSES)
    return out


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) uint8 RGB and its labels (H, W) uint8, 255 around objects; one scene in three is crowded."""
    height, width = (int(rng.integers(low, high + 1)) for low, high in (HEIGHTS, WIDTHS))
    picture = _background(rng, height, width)
    labels = np.zeros((height, width), np.uint8)
    crowded = rng.random() < 1 / 3
    count = rng.integers(15, 31) if crowded else rng.integers(4, 10)
    radii = np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST / 2 if crowded else LARGEST), count))
    for centre, radius in _places(rng, height, width, sorted(radii, reverse=True)):
        _draw_object(rng, picture, labels, int(rng.integers(1, len(CLASSES))), centre, radius)
    picture += rng.normal(0, 0.02, picture.shape)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8), labels


def _places(
    rng: np.random.Generator, height: int, width: int, radii: Sequence[float]
) -> list[tuple[np.ndarray, float]]:
    """Centres (x, y) and radii of discs that lie inside the picture and apart; one without a place is left out."""
    centres, reaches = np.empty((0, 2)), np.empty(0)
    for radius in radii:
        for _ in range(ATTEMPTS):
            centre = rng.uniform(radius, np.maximum((width - radius, height - radius), radius))
            if (np.hypot(*(centre - centres).T) > radius + reaches).all():
                centres, reaches = np.vstack((centres, centre)), np.append(reaches, radius)
                break
    return list(zip(centres, reaches, strict=True))


def draw_single(rng: np.random.Generator, side: int, radii: tuple[float, float]) -> tuple[np.ndarray, int]:
    """A picture (side, side, 3) uint8 RGB of one object, and its class; one in six is background alone.

    The radius is log-uniform between two values in pixels, and the object lies inside the picture where it fits.
    """
    picture, label = _background(rng, side, side), int(rng.integers(len(CLASSES)))
    radius = np.exp(rng.uniform(*np.log(radii)))
    centre = side / 2 + rng.uniform(-1, 1, 2) * max(side / 2 - radius, 0)
    if label:
        _draw_object(rng, picture, np.zeros((side, side), np.uint8), label, centre, radius)
    picture += rng.normal(0, 0.02, picture.shape)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8), label


def _draw_object(
    rng: np.random.Generator, picture: np.ndarray, labels: np.ndarray, label: int, centre: np.ndarray, radius: float
) -> None:
    """Draws an object of a class into picture and labels; `centre` (x, y) and `radius` are in pixels."""
    reach = 1.25 * radius + 2  # the square's corners, and the ignored pixels around
    left, top = np.maximum(centre - reach, 0).astype(int)
    picture, labels = (each[top : int(centre[1] + reach), left : int(centre[0] + reach)] for each in (picture, labels))
    height, width = labels.shape
    angle = rng.uniform(0, 2 * np.pi)
    down, right = (np.arange(size * OVERSAMPLING, dtype=np.float32) / OVERSAMPLING for size in (height, width))
    down, right = ((down + top - centre[1]) / radius)[:, None], (right + left - centre[0]) / radius
    x = np.cos(angle) * right + np.sin(angle) * down  # the object's own coordinates, in radii
    y = np.cos(angle) * down - np.sin(angle) * right
    inside, texture = _shape_and_texture(CLASSES[label], x, y)

    coverage = cv2.resize(inside.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    pattern = cv2.resize(np.tanh(3 * texture) / 2 + 0.5, (width, height), interpolation=cv2.INTER_AREA)[..., None]
    hue = (label - 1) / (len(CLASSES) - 1) + rng.normal(0, 0.1)
    light = _colour(hue, rng.uniform(0.5, 1), rng.uniform(0.7, 1.0))
    dark = _colour(hue + rng.normal(0, 0.05), rng.uniform(0.5, 1), rng.uniform(0.15, 0.4))
    picture += coverage[..., None] * (pattern * light + (1 - pattern) * dark - picture)

    body, disk = (coverage > 0.5).astype(np.uint8), np.ones((3, 3), np.uint8)
    labels[cv2.dilate(body, disk) > 0] = IGNORE_LABEL
    labels[cv2.erode(body, disk) > 0] = label


def _shape_and_texture(name: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The object's mask, and its pattern: positive is light, negative is dark."""
    distance, farther = np.hypot(x, y), np.maximum(abs(x), abs(y))
    match name:
        case "disc":  # with circles
            return distance < 1, np.cos(14 * distance)
        case "square":  # with stripes
            return farther < 0.85, np.sin(10 * x)
        case "triangle":  # with a checkerboard
            return np.maximum(y, abs(x) * 0.866 - y / 2) < 0.5, np.sin(9 * x) * np.sin(9 * y)
        case "ring":  # with rays
            return (distance > 0.5) & (distance < 1), np.sin(12 * np.arctan2(y, x))
        case "cross":  # plain, lighter towards the centre
            return (np.minimum(abs(x), abs(y)) < 0.28) & (farther < 1), 0.7 - distance


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W, 3) float32: clouds of two colours at three sizes."""
    clouds = np.zeros((height, width), np.float32)
    for cell in (4, 12, 40):
        noise = rng.normal(0, 1, (height // cell + 2, width // cell + 2)).astype(np.float32)
        clouds += rng.uniform(0.3, 1) * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    mix = 1 / (1 + np.exp(-2 * clouds[..., None]))
    first, second = (_colour(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.2, 0.9)) for _ in range(2))
    return mix * first + (1 - mix) * second


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)
