"""ADE20K as published for the Scene Parsing Benchmark (Zhou et al., CVPR 2017): 150 classes of things and stuff."""

import os
from pathlib import Path

import numpy as np

from a2s_repro.data.archives import PublishedFiles, source_files
from a2s_repro.data.images import decode_label
from a2s_repro.data.preparation import IdList, Prepared, check_pairs, encoded_labels, place_images, write_labels
from a2s_repro.errors import InputError

NUM_CLASSES = 150
SOURCE = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
SPLITS = {"train": "training", "val": "validation"}

NAMES = PublishedFiles("ADE20K SceneParsing", SOURCE, "ADEChallengeData2016", ("objectInfo150.txt",))
IMAGES = {name: NAMES._replace(patterns=(f"images/{split}/ADE_*.jpg",)) for name, split in SPLITS.items()}
ANNOTATIONS = {name: NAMES._replace(patterns=(f"annotations/{split}/ADE_*.png",)) for name, split in SPLITS.items()}

LABELS = "SegmentationClass"
LISTS = {
    "train": IdList(20210, "4019e8ad28037fc9820b1892ab68bef0"),
    "val": IdList(2000, "041601cdf04376a1efb1715fe07e7da6"),
}
"""Ids are numbered without gaps."""


def prepare_ade20k(
    source: str | os.PathLike, out: str | os.PathLike, *, check_counts: bool = True, workers: int = 0
) -> Prepared:
    """Makes the data root `out` from ADEChallengeData2016, archive or folder.

    Labels (SegmentationClass) come from `shift_labels`: 0 .. 149, and 255 outside the 150 classes. The lists are train
    and val.

    A repeated call resumes an interrupted one: files already in `out` are checked and kept. Raises InputError for
    missing or damaged sources, for annotations with values other than 0 .. 150 or of another size than their image,
    and, unless `check_counts` is False, for lists that differ from the published ones.
    """
    source, root = Path(source), Path(out)
    for file in source_files(source, NAMES):
        classes = class_names(file.read(), file.name)
    lists = {}
    for name in SPLITS:
        annotations = encoded_labels(source_files(source, ANNOTATIONS[name]))
        ids = write_labels(root / LABELS, annotations, shift_labels, workers)
        place_images(source_files(source, IMAGES[name]), root, ids)
        check_pairs(root, LABELS, ids, NUM_CLASSES, workers)
        lists[name] = sorted(ids)
    prepared = Prepared(root, lists)
    if check_counts:
        prepared.check("ADE20K SceneParsing", LISTS)
    prepared.write(LABELS, classes)
    return prepared


def shift_labels(encoded: bytes, name: str) -> np.ndarray:
    """Labels 0 .. 149 and 255 from an annotation's values 1 .. 150 and 0 (other objects): (H, W) uint8.

    `encoded` is the PNG's bytes; `name` stands for the file in error messages. Raises InputError as `decode_label`.
    """
    return decode_label(encoded, name, NUM_CLASSES + 1, ignore_label=0) - np.uint8(1)  # 0 wraps around to 255


def class_names(encoded: bytes, name: str) -> list[str]:
    """The 150 names of objectInfo150.txt, synonyms included. Raises InputError if it is another file."""
    rows = [line.split("\t") for line in encoded.decode(errors="replace").splitlines() if line.strip()]
    numbers = [row[0].strip() for row in rows[1:]]
    if numbers != [str(number) for number in range(1, NUM_CLASSES + 1)]:
        raise InputError(f"{name} does not list the objects 1..{NUM_CLASSES}: get it again from {SOURCE}.")
    return [row[-1].strip() for row in rows[1:]]
