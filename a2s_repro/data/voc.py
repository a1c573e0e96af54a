"""PASCAL VOC 2012 with the extra annotations of SBD (Hariharan et al., "Semantic contours from inverse detectors").

A2S trains on `train_aug`: VOC's 1464 training images and the 9118 images that SBD alone labels.
"""

import io
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from a2s_repro.data.archives import PublishedFiles, source_files
from a2s_repro.data.images import IGNORE_LABEL, decode_label, read_label, write_label
from a2s_repro.data.preparation import (
    IMAGES,
    IdList,
    Prepared,
    check_images,
    check_pairs,
    encoded_labels,
    place,
    place_images,
    read_splits,
    write_labels,
)
from a2s_repro.errors import InputError

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

VOC_SOURCE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
VOC_TEST_SOURCE = "http://host.robots.ox.ac.uk:8080/eval/downloads/VOC2012test.tar (after registration)"
SBD_SOURCE = "http://home.bharathh.info/pubs/codes/SBD/download.html (benchmark.tgz)"

OWN_LABELS, LABELS = "SegmentationClass", "SegmentationClassAug"
_FOLDER = "VOCdevkit/VOC2012"
_SPLITS = "ImageSets/Segmentation"
VOC_SPLITS = PublishedFiles("VOC 2012", VOC_SOURCE, _FOLDER, (f"{_SPLITS}/train.txt", f"{_SPLITS}/val.txt"))
VOC = PublishedFiles("VOC 2012", VOC_SOURCE, _FOLDER, (f"{IMAGES}/*.jpg", f"{OWN_LABELS}/*.png"))
VOC_TEST_SPLIT = PublishedFiles("the test images of VOC 2012", VOC_TEST_SOURCE, _FOLDER, (f"{_SPLITS}/test.txt",))
VOC_TEST = VOC_TEST_SPLIT._replace(patterns=(f"{IMAGES}/*.jpg",))
SBD = PublishedFiles("SBD", SBD_SOURCE, "benchmark_RELEASE/dataset", ("cls/[0-9]*.mat",))

LISTS = {
    "train_aug": IdList(10582, "215992f6fd958f89800449fdb4bbabe6"),
    "trainval_aug": IdList(12031, "7110923167de0332931c8d4dc9b949bc"),
    "train": IdList(1464, "223101833d3a86c8a837814f3e7afe88"),
    "val": IdList(1449, "5510db06bbb92848a0bf6109eba6d646"),
    "test": IdList(1456, "6694c8294f9eb06d0924f2c30e38e86f"),
}


def palette() -> np.ndarray:
    """VOC's colour map, (256, 3) uint8 RGB: a label's bits, lowest first, fill R, G, B in turn from the highest bit."""
    labels = np.arange(256, dtype=np.uint8)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= (labels >> bit & 1) << (7 - bit // 3)
    return colours


def write_label_png(path: str | os.PathLike, labels: np.ndarray) -> None:
    """Writes (H, W) uint8 labels as VOC does: a palette PNG of class indices in VOC's colours."""
    write_label(path, labels, palette())


def prepare_voc(
    voc: str | os.PathLike,
    sbd: str | os.PathLike,
    out: str | os.PathLike,
    *,
    voc_test: str | os.PathLike | None = None,
    check_counts: bool = True,
    workers: int = 0,
) -> Prepared:
    """Makes the data root `out` with the authors' lists and labels from VOC 2012 and SBD, archives or folders.

    Labels (SegmentationClassAug) of VOC train and val are VOC's own, with 255 at borders; all others are SBD's, without
    borders. The lists are train_aug (train, and SBD without val), trainval_aug, train and val; with `voc_test` also
    test, which has no labels. VOC's own labels and splits are placed in the data root, too.

    A repeated call resumes an interrupted one: files already in `out` are checked and kept. Raises InputError for
    missing or damaged sources, for labels with values other than 0..20 and 255, with object numbers instead of classes
    or of another size than their image, and, unless `check_counts` is False, for lists that differ from the published
    ones.
    """
    root = Path(out)
    train, val = read_splits(Path(voc), VOC_SPLITS, root)
    own = train | val
    unlike_own = (file for file in source_files(Path(sbd), SBD) if file.path.stem not in own)
    sbd_only = write_labels(root / LABELS, encoded_labels(unlike_own), _decode_mat, workers)

    wanted = {IMAGES: own | sbd_only, OWN_LABELS: own}
    for file in source_files(Path(voc), VOC):
        if file.path.stem in wanted[file.path.parts[0]]:
            place(file, root / file.path)
    own_labels = [root / OWN_LABELS / f"{name}.png" for name in sorted(own)]
    _refuse_object_numbers(own_labels)
    arguments = ((path.stem, lambda path=path: (path.read_bytes(), str(path))) for path in own_labels)
    write_labels(root / LABELS, arguments, partial(decode_label, num_classes=len(CLASSES)), workers)
    check_pairs(root, LABELS, own | sbd_only, len(CLASSES), workers)

    lists = {"train_aug": train | sbd_only, "trainval_aug": own | sbd_only, "train": train, "val": val}
    if voc_test:
        (lists["test"],) = read_splits(Path(voc_test), VOC_TEST_SPLIT, root)
        place_images(source_files(Path(voc_test), VOC_TEST), root, lists["test"])
        check_images(root, lists["test"])
    prepared = Prepared(root, {name: sorted(ids) for name, ids in lists.items()})
    if check_counts:
        prepared.check("VOC 2012 and SBD", LISTS)
    prepared.write(LABELS, CLASSES, unlabelled=("test",))
    return prepared


def _refuse_object_numbers(paths: Iterable[Path]) -> None:
    """Raises InputError for SegmentationObject's label maps, which number the objects of every image 1, 2, ..."""
    several = False
    for path in paths:
        numbers = np.setdiff1d(read_label(path, len(CLASSES)), (0, IGNORE_LABEL))
        if not np.array_equal(numbers, np.arange(1, len(numbers) + 1)):
            return
        several |= len(numbers) > 1
    if several:
        raise InputError(
            f"{path.parent} numbers the objects of every image from 1, as SegmentationObject does: replace it with "
            f"SegmentationClass from {VOC_SOURCE}."
        )


def _decode_mat(encoded: bytes, name: str) -> np.ndarray:
    """GTcls.Segmentation of an SBD class file: (H, W) uint8, 0..20."""
    from scipy.io import loadmat  # slow to import

    try:
        labels = loadmat(io.BytesIO(encoded))["GTcls"]["Segmentation"][0, 0]
    except Exception:  # scipy's reader raises many types for a damaged file
        raise InputError(f"{name} is damaged or holds no GTcls.Segmentation: get SBD again.") from None
    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.max(initial=0) >= len(CLASSES):
        raise InputError(f"{name} is not a map of the labels 0..{len(CLASSES) - 1}: get SBD again.")
    return labels
