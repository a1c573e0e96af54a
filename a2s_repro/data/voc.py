"""PASCAL VOC 2012 with the extra annotations of SBD (Hariharan et al., "Semantic contours from inverse detectors").

A2S trains on `train_aug`: VOC's 1464 training images and the 9118 images that SBD alone labels.
"""

import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.io import loadmat
from tqdm import tqdm

from a2s_repro.data.images import image_size, read_label
from a2s_repro.errors import InputError
from a2s_repro.files import replacing

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

VOC_SOURCE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
SBD_SOURCE = "http://home.bharathh.info/pubs/codes/SBD/download.html (benchmark.tgz)"

COUNTS = {"train": 1464, "val": 1449, "SBD only": 9118, "train_aug": 10582, "trainval_aug": 12031}


def palette() -> np.ndarray:
    """VOC's colour map, (256, 3) uint8 RGB: the bits of a label, lowest first, go to R, G, B in turn, highest first."""
    labels = np.arange(256, dtype=np.uint8)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= (labels >> bit & 1) << (7 - bit // 3)
    return colours


def write_label_png(path: str | os.PathLike, labels: np.ndarray) -> None:
    """Writes (H, W) uint8 labels as VOC does: a PNG of class indices that viewers show in VOC's colours."""
    image = Image.fromarray(labels)
    image.putpalette(palette().tobytes())
    _save(path, image)


class Prepared(NamedTuple):
    root: Path
    counts: dict[str, int]


def prepare_voc(
    voc: str | os.PathLike, sbd: str | os.PathLike, out: str | os.PathLike | None = None, *, check_counts: bool = True
) -> Prepared:
    """Makes a data root with `SegmentationClassAug` and the authors' lists from VOC 2012 and SBD.

    `voc` is VOCtrainval_11-May-2012.tar or the folder unpacked from it, `sbd` is benchmark.tgz or its folder. `out` is
    the data root to make; by default the VOC folder itself, or `VOC2012` beside the archive. It receives

    * SegmentationClassAug/ID.png, grey PNGs of class indices: SBD's labels, but VOC's own, which have 255 borders, for
      every image of VOC train and val;
    * list/train_aug.txt (train and SBD without val), list/trainval_aug.txt and list/val.txt, two columns, ids sorted.

    What an interrupted call left is kept, checked and completed. Raises InputError for missing or damaged sources, for
    labels that hold values other than 0..20 and 255 or differ from their image in size, and, unless `check_counts` is
    False, where the numbers of images are not those of COUNTS.
    """
    root = _data_root(Path(voc), out)
    train, val = (_read_ids(root / "ImageSets/Segmentation" / f"{name}.txt") for name in ("train", "val"))

    own = {name: partial(read_label, root / f"SegmentationClass/{name}.png", len(CLASSES)) for name in train | val}
    for name, read in tqdm(sorted(own.items()), desc="VOC labels", unit="image"):
        _write_label(root, name, read)
    sbd_only = set()
    for name, read in _sbd_labels(Path(sbd)):
        if name not in own:
            _write_label(root, name, read)
            sbd_only.add(name)

    lists = {"train_aug": train | sbd_only, "trainval_aug": train | sbd_only | val, "val": val}
    counts = {"train": len(train), "SBD only": len(sbd_only)} | {name: len(ids) for name, ids in lists.items()}
    wrong = [f"{name} {counts[name]}, not {known}" for name, known in COUNTS.items() if counts[name] != known]
    if wrong and check_counts:
        raise InputError(
            f"{voc} and {sbd} do not hold the published numbers of images ({'; '.join(wrong)}): "
            "check that both downloads are complete."
        )
    for name, ids in lists.items():
        with replacing(root / "list" / f"{name}.txt") as temporary:
            temporary.write_text("".join(f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png\n" for i in sorted(ids)))
    return Prepared(root, counts)


def _data_root(voc: Path, out: str | os.PathLike | None) -> Path:
    """The folder that holds VOC's own images, labels and id lists afterwards."""
    if voc.is_file():
        root = Path(out) if out else voc.parent / "VOC2012"
        _unpack_voc(voc, root)
        return root
    folder = _first_with("JPEGImages", voc, ("", "VOC2012", "VOCdevkit/VOC2012"))
    if folder is None:
        raise InputError(f"{voc} is neither VOC 2012's archive nor a folder with JPEGImages: get it from {VOC_SOURCE}.")
    root = Path(out) if out else folder
    root.mkdir(parents=True, exist_ok=True)
    for name in ("JPEGImages", "SegmentationClass", "ImageSets"):
        if not (root / name).exists():
            (root / name).symlink_to((folder / name).resolve(), target_is_directory=True)
    return root


def _first_with(wanted: str, folder: Path, places: Iterable[str]) -> Path | None:
    return next((folder / place for place in places if (folder / place / wanted).is_dir()), None)


def _unpack_voc(archive: Path, root: Path) -> None:
    """Unpacks VOCdevkit/VOC2012/* of the archive into `root`, leaving files that are already whole."""
    with _reading(archive) as tar:
        for member in tar:
            inside = PurePosixPath(member.name).parts[2:]
            if not member.isfile() or not inside or inside[0] not in ("JPEGImages", "SegmentationClass", "ImageSets"):
                continue
            member.name = str(PurePosixPath(*inside))
            target = root / member.name
            if not target.is_file() or target.stat().st_size != member.size:
                tar.extract(member, root, filter="data")


def _sbd_labels(sbd: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Pairs of an image id and the function that decodes its label, from SBD's folder or archive."""
    if sbd.is_file():
        with _reading(sbd) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if member.isfile() and path.parent.name == "cls" and path.suffix == ".mat":
                    yield path.stem, partial(_decode_mat, tar.extractfile(member).read(), f"{sbd}: {path}")
        return
    folder = _first_with("cls", sbd, ("", "dataset", "benchmark_RELEASE/dataset"))
    if folder is None:
        raise InputError(f"{sbd} is neither SBD's archive nor a folder with dataset/cls: get it from {SBD_SOURCE}.")
    for path in tqdm(sorted(folder.glob("cls/*.mat")), desc="SBD labels", unit="image"):
        yield path.stem, lambda path=path: _decode_mat(path.read_bytes(), str(path))


def _decode_mat(encoded: bytes, name: str) -> np.ndarray:
    """GTcls.Segmentation of an SBD class file: (H, W) uint8, 0..20."""
    try:
        labels = loadmat(io.BytesIO(encoded))["GTcls"]["Segmentation"][0, 0]
    except Exception:  # scipy's reader raises whatever a damaged file leads to
        raise InputError(f"{name} is damaged or holds no GTcls.Segmentation: get SBD again.") from None
    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.max(initial=0) >= len(CLASSES):
        raise InputError(f"{name} is not a map of the labels 0..{len(CLASSES) - 1}: get SBD again.")
    return labels


def _write_label(root: Path, name: str, read: Callable[[], np.ndarray]) -> None:
    target = root / "SegmentationClassAug" / f"{name}.png"
    image = root / "JPEGImages" / f"{name}.jpg"
    present = target.is_file()
    labels = read_label(target, len(CLASSES)) if present else read()
    if labels.shape != image_size(image):
        raise InputError(f"{image} and its label differ in size: check that VOC and SBD are the published ones.")
    if not present:
        _save(target, Image.fromarray(labels))


def _save(path: str | os.PathLike, image: Image.Image) -> None:
    with replacing(path) as temporary:
        image.save(temporary)


def _read_ids(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): get VOC 2012 from {VOC_SOURCE}.") from None


@contextmanager
def _reading(archive: Path) -> Iterator[tarfile.TarFile]:
    """Opens a tar archive, compressed or not, to be read once from front to end under a progress bar."""
    try:
        with (
            open(archive, "rb") as file,
            tqdm.wrapattr(file, "read", total=archive.stat().st_size, desc=archive.name) as counted,
            tarfile.open(fileobj=counted, mode="r|*") as tar,
        ):
            yield tar
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise InputError(f"{archive} is damaged or unsafe to unpack ({error}): download it again.") from None
