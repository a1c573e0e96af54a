"""MS COCO 2014 as A2S uses it, with 80 classes: all training images, or the subset of its tables, the first 10000
training and 1500 validation images.

The authors' labels are COCO's own category ids up to 90, so their nets have 91 outputs. How the authors painted
overlapping objects and crowd regions is not known.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from a2s_repro.data.archives import PublishedFiles, source_files
from a2s_repro.data.images import IGNORE_LABEL, MAX_PIXELS
from a2s_repro.data.lists import VOID, read_lines, write_lines
from a2s_repro.data.preparation import IdList, Prepared, check_pairs, place_images, write_labels
from a2s_repro.errors import InputError, check_known, first_line
from a2s_repro.runtime.progress import Progress

NUM_CLASSES = 91
ORDERS = ("file", "area")
"""Orders of painting: as in the file, or by decreasing area. Later annotations cover earlier ones."""
CROWDS = ("ignore", "paint")
"""Labels of crowd regions: 255, or their category as for single objects."""

ANNOTATIONS_SOURCE = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
IMAGES_SOURCES = {split: f"http://images.cocodataset.org/zips/{split}2014.zip" for split in ("train", "val")}
ANNOTATIONS = {
    split: PublishedFiles(
        "COCO 2014's annotations", ANNOTATIONS_SOURCE, "annotations", (f"instances_{split}2014.json",)
    )
    for split in IMAGES_SOURCES
}
IMAGES = {
    split: PublishedFiles(f"COCO's {split}2014 images", url, f"{split}2014", (f"COCO_{split}2014_*.jpg",))
    for split, url in IMAGES_SOURCES.items()
}

_REMEDY = f"get {ANNOTATIONS_SOURCE}"
_FEWEST_COORDINATES = 6
"""Coordinates of a triangle, the smallest polygon with an area."""

LABELS = "SegmentationClass"
LISTS = {
    "train": IdList(82783, None),
    "train_small": IdList(10000, "bc6d4978b2638a8a74d95d17109cc27f"),
    "val_small": IdList(1500, "af79f311ee7d494ea265bc1adf1dc349"),
}


def prepare_coco(
    annotations: str | os.PathLike,
    train: str | os.PathLike,
    val: str | os.PathLike,
    out: str | os.PathLike,
    *,
    full: bool = False,
    order: str = "file",
    crowd: str = "ignore",
    check_counts: bool = True,
    workers: int = 0,
) -> Prepared:
    """Makes the data root `out` with the authors' lists from COCO's annotations and images, archives or folders.

    Labels (SegmentationClass) are painted by `paint`; `order` is one of ORDERS, `crowd` one of CROWDS. The lists are
    train_small and val_small, and with `full` train, all of train2014; classes.txt names the 91 label values, `void`
    where COCO has no category.

    A repeated call resumes an interrupted one: files already in `out` are checked and kept. Raises InputError for
    missing or damaged sources, for a data root painted with another order or crowd, for annotations of another size
    than their image, and, unless `check_counts` is False, for lists that differ from the published ones.
    """
    check_known("order", order, ORDERS)
    check_known("crowd", crowd, CROWDS)
    _import_coco()
    root = Path(out)
    _keep_to_one_painting(root, f"order {order}, crowd {crowd}")
    lists, classes, without_area = {}, [], 0
    for split, source in (("train", train), ("val", val)):
        subset, whole = LISTS[f"{split}_small"].count, full and split == "train"
        images, classes = _read_instances(Path(annotations), split, None if whole else subset, order)
        without_area += sum(_without_area(annotations) for _, annotations in images.values())
        arguments = Progress(list(images.items()), "painting", "image")
        write_labels(root / LABELS, ((i, lambda of=of: (*of, crowd)) for i, of in arguments), paint, workers)
        place_images(source_files(Path(source), IMAGES[split]), root, set(images))
        check_pairs(root, LABELS, images, NUM_CLASSES, workers)
        if whole:
            lists[split] = sorted(images)
        lists[f"{split}_small"] = sorted(images)[:subset]
    notes = [f"left out {without_area} polygons of fewer than three points"] if without_area else []
    prepared = Prepared(root, lists, tuple(notes))
    if check_counts:
        prepared.check("COCO 2014" if full else "the COCO subset", LISTS)
    prepared.write(LABELS, classes)
    return prepared


def _keep_to_one_painting(root: Path, painting: str) -> None:
    """Records how the labels are painted; raises InputError if the data root was painted in another way."""
    note = root / "painting.txt"
    before = read_lines(note)[0] if note.is_file() else painting
    if before != painting:
        raise InputError(f"{root} was painted with {before}, not {painting}: give another --out, or remove it.")
    write_lines(note, [painting])


def _read_instances(
    source: Path, split: str, count: int | None, order: str
) -> tuple[dict[str, tuple[dict[str, Any], list[dict[str, Any]]]], list[str]]:
    """The first `count` images of a split (None: all) with their annotations, by file name without suffix; and all
    class names."""
    for file in source_files(source, ANNOTATIONS[split]):
        name, encoded = file.name, file.read()
    try:
        content = json.loads(encoded)
        images = sorted(content["images"], key=lambda image: image["id"])[:count]
        images = [{key: image[key] for key in ("id", "file_name", "height", "width")} for image in images]
        images = [image | {key: _whole(image[key]) for key in ("height", "width")} for image in images]
        annotations = {image["id"]: [] for image in images}
        for annotation in content["annotations"]:
            if annotation["image_id"] in annotations:
                annotations[annotation["image_id"]].append(annotation)
        if order == "area":
            for listed in annotations.values():
                listed.sort(key=lambda annotation: -_finite(annotation["area"]))
        classes = ["background"] + [VOID] * (NUM_CLASSES - 1)
        for category in content["categories"]:
            number, title = _whole(category["id"]), category["name"]
            if not 0 < number < NUM_CLASSES or not (isinstance(title, str) and title.isprintable()):
                raise ValueError(f"category {number} is named {title!r}")
            classes[number] = title
        return {_stem(image["file_name"]): (image, annotations[image["id"]]) for image in images}, classes
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{name} is damaged or not COCO's instance annotations ({error!r}): {_REMEDY}.") from None


def paint(image: dict[str, Any], annotations: list[dict[str, Any]], crowd: str = "ignore") -> np.ndarray:
    """Label map (H, W) uint8 of one image: category ids, 0 where there is no object.

    `image` and `annotations` have COCO's JSON format; segmentations are polygons or run lengths, compressed or not.
    Later annotations cover earlier ones. Polygons of fewer than three points have no area and are left out. Raises
    InputError for an annotation that is damaged or does not fit the image.
    """
    coco = _import_coco()()
    try:
        height, width = _whole(image["height"]), _whole(image["width"])
        coco.imgs = {image["id"]: image | {"height": height, "width": width}}
    except (TypeError, ValueError) as error:
        raise InputError(f"{image['file_name']} has no size or number ({error}): {_REMEDY}.") from None
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise InputError(f"{image['file_name']} has {width}x{height} pixels, which is not possible: {_REMEDY}.")
    labels = np.zeros((height, width), np.uint8)
    for annotation in annotations:
        try:
            category, is_crowd = _whole(annotation["category_id"]), annotation["iscrowd"]
            if is_crowd not in (0, 1):
                raise ValueError(f"iscrowd is {is_crowd!r}")
            if isinstance(annotation["segmentation"], list):
                annotation = annotation | {"segmentation": _areas(annotation["segmentation"], height, width)}
                if not annotation["segmentation"]:
                    continue
            _check_runs(annotation["segmentation"])
            mask = coco.annToMask(annotation).astype(bool)
        except Exception as error:  # pycocotools raises many types for a damaged annotation
            number = annotation.get("id") if isinstance(annotation, dict) else annotation
            raise InputError(
                f"Annotation {number} of {image['file_name']} is damaged ({first_line(error)}): {_REMEDY}."
            ) from None
        if mask.shape != labels.shape or not 0 < category < NUM_CLASSES:
            raise InputError(
                f"Annotation {annotation.get('id')} of {image['file_name']} is of category {category} and "
                f"{mask.shape[1]}x{mask.shape[0]} pixels, but categories are 1..{NUM_CLASSES - 1} and the image has "
                f"{labels.shape[1]}x{labels.shape[0]}: {_REMEDY}."
            )
        labels[mask] = IGNORE_LABEL if is_crowd and crowd == "ignore" else category
    return labels


def _areas(polygons: list, height: int, width: int) -> list[list[float]]:
    """The polygons of three or more points.

    Raises ValueError for coordinates that are no numbers or are further outside the image than it is large, and for a
    contour longer than all pixels' sides: pycocotools takes memory for every pixel that a contour passes.
    """
    length = 0.0
    for polygon in polygons:
        if not all(isinstance(value, int | float) for value in polygon) or len(polygon) % 2:
            raise ValueError("a polygon is no list of pairs of numbers")
        points = np.array(polygon, np.float64).reshape(-1, 2)
        side = np.array([width, height])
        if not ((points >= -side) & (points <= 2 * side)).all():
            raise ValueError("a polygon has points far outside the image")
        length += float(np.abs(points - np.roll(points, 1, 0)).max(1, initial=0).sum())
    if length > 4 * height * width + 4 * (height + width):
        raise ValueError("its contour is longer than all pixels' sides")
    return [polygon for polygon in polygons if len(polygon) >= _FEWEST_COORDINATES]


def _without_area(annotations: Iterable[Any]) -> int:
    """The number of polygons of fewer than three points in annotations."""
    segmentations = (annotation["segmentation"] for annotation in annotations)
    polygons = (segmentation or [[]] for segmentation in segmentations if isinstance(segmentation, list))
    return sum(len(polygon) < _FEWEST_COORDINATES for listed in polygons for polygon in listed)


def _stem(name: str) -> str:
    """The name of an image without folder and suffix. Raises ValueError for one that is no file name."""
    stem = Path(name).stem
    if not stem or not stem.isprintable():
        raise ValueError(f"an image is named {name!r}")
    return stem


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no area")
    return value


def _whole(value: Any) -> int:
    """An integer of a JSON file, which may have it as 40.0. Raises ValueError for another value."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ValueError(f"{value!r} is no integer")
    return int(value)


def _check_runs(segmentation: Any) -> None:
    """Raises ValueError if run lengths do not fill their map: the rest of pycocotools' mask is uninitialised memory."""
    if not isinstance(segmentation, dict):
        return
    counts = segmentation["counts"]
    height, width = segmentation["size"]
    runs = counts if isinstance(counts, list) else _decompressed(counts)
    fills = all(type(run) is int and run >= 0 for run in runs) and sum(runs) == height * width <= MAX_PIXELS
    if not fills:
        raise ValueError(f"its run lengths do not add up to {width}x{height} pixels")


def _decompressed(counts: str | bytes) -> list[int]:
    """The run lengths of COCO's compressed form.

    A number is written in groups of 5 bits, lowest first, as characters from 48 on; bit 5 says that another group
    follows, and bit 4 of the last is the sign. From the third on, numbers are differences from the last but one.
    """
    codes = [code - 48 for code in (counts.encode("ascii") if isinstance(counts, str) else counts)]
    runs: list[int] = []
    value = shift = 0
    for code in codes:
        if not 0 <= code < 64:
            raise ValueError(f"its compressed run lengths hold the character {chr(code + 48)!r}")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) and 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its compressed run lengths are cut short")
    return runs


def _import_coco() -> type:
    try:
        from pycocotools.coco import COCO
    except ImportError:
        raise InputError("COCO's masks need pycocotools: pip install 'a2s_repro[coco]'.") from None
    return COCO
