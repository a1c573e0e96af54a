"""PASCAL-Person-Part: people of PASCAL-Part (Chen et al., CVPR 2014) on VOC 2010, their parts merged into six."""

import io
import os
from pathlib import Path

import numpy as np

from a2s_repro.data.archives import PublishedFiles, source_files
from a2s_repro.data.preparation import (
    IMAGES,
    IdList,
    Prepared,
    check_pairs,
    encoded_labels,
    place_images,
    read_splits,
    write_labels,
)
from a2s_repro.errors import InputError

PARTS = {
    "head": "head leye reye lear rear lebrow rebrow nose mouth hair neck",
    "torso": "torso",
    "upper arms": "luarm ruarm",
    "lower arms": "llarm rlarm lhand rhand",
    "upper legs": "luleg ruleg",
    "lower legs": "llleg rlleg lfoot rfoot",
}
"""The parts of A2S, from label 1, and the parts of PASCAL-Part merged into each."""

CLASSES = ("background", *PARTS)
LABEL_OF = {name: label for label, names in enumerate(PARTS.values(), 1) for name in names.split()}
PERSON = 15
"""VOC's index of the class."""

PARTS_SOURCE = "http://roozbehm.info/pascal-parts/pascal-parts.html (trainval.tar.gz)"
VOC10_SOURCE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar"

ANNOTATIONS = PublishedFiles("PASCAL-Part", PARTS_SOURCE, "trainval/Annotations_Part", ("[0-9]*.mat",))
VOC10 = PublishedFiles("VOC 2010", VOC10_SOURCE, "VOCdevkit/VOC2010", (f"{IMAGES}/*.jpg",))
SPLITS = VOC10._replace(patterns=("ImageSets/Main/train.txt", "ImageSets/Main/val.txt"))

LABELS = "SegmentationPart"
LISTS = {
    "train": IdList(1716, "cd8d9c1084be52612402865db2ecd19b"),
    "val": IdList(1817, "7abc6ced4ebc93dfebde4656ffa5a525"),
}


def prepare_person_part(
    parts: str | os.PathLike,
    voc: str | os.PathLike,
    out: str | os.PathLike,
    *,
    check_counts: bool = True,
    workers: int = 0,
) -> Prepared:
    """Makes the data root `out` with the authors' labels and lists from PASCAL-Part and VOC 2010, archives or folders.

    Labels (SegmentationPart) come from `part_labels`; images without a person's part are left out. The lists are train
    and val, following VOC 2010's splits (ImageSets/Main).

    A repeated call resumes an interrupted one: files already in `out` are checked and kept. Raises InputError for
    missing or damaged sources, for labels of another size than their image, and, unless `check_counts` is False, for
    lists that differ from the published ones.
    """
    root = Path(out)
    splits = read_splits(Path(voc), SPLITS, root)
    annotations = encoded_labels(source_files(Path(parts), ANNOTATIONS))
    ids = write_labels(root / LABELS, annotations, part_labels, workers)
    lists = {name: sorted(ids & split) for name, split in zip(LISTS, splits, strict=True)}
    ids = {i for listed in lists.values() for i in listed}
    place_images(source_files(Path(voc), VOC10), root, ids)
    check_pairs(root, LABELS, ids, len(CLASSES), workers)
    prepared = Prepared(root, lists)
    if check_counts:
        prepared.check("PASCAL-Person-Part", LISTS)
    prepared.write(LABELS, CLASSES)
    return prepared


def part_labels(encoded: bytes, name: str) -> np.ndarray | None:
    """The label map of a PASCAL-Part annotation file: (H, W) uint8, 0..6; None if it has no person's part.

    As in the authors' labels, objects and their parts are painted in the order of the file, later ones over earlier
    ones, and the parts of other objects are painted as background. `encoded` is the .mat file's bytes; `name` stands
    for the file in error messages. Raises InputError for damaged files and unknown parts.
    """
    from scipy.io import loadmat  # slow to import

    try:
        parts = [
            (int(thing["class_ind"].item()) == PERSON, part["part_name"].item(), part["mask"].astype(bool))
            for thing in loadmat(io.BytesIO(encoded))["anno"]["objects"][0, 0].ravel()
            for part in thing["parts"].ravel()
        ]
    except Exception:  # scipy's reader raises many types for a damaged file
        raise InputError(f"{name} is damaged or no annotation of PASCAL-Part: get {PARTS_SOURCE}.") from None
    if not parts:
        return None
    labels = np.zeros(parts[0][2].shape, np.uint8)
    for of_person, part, mask in parts:
        if of_person and part not in LABEL_OF:
            raise InputError(f"{name} has the unknown person part '{part}': get {PARTS_SOURCE}.")
        if mask.shape != labels.shape:
            raise InputError(f"{name} has masks of different sizes: get {PARTS_SOURCE}.")
        labels[mask] = LABEL_OF[part] if of_person else 0
    return labels if labels.any() else None
