"""List files, which pair images with label maps."""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from a2s_repro.errors import InputError
from a2s_repro.files import replacing

VOID = "void"
"""Name, in a file of class names, of a label value without a class."""

IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")
LABEL_FOLDERS = ("SegmentationClassAug", "SegmentationClass")


class Item(NamedTuple):
    """An image of a data set and its label map; `label` is None for unlabelled lists."""

    id: str
    image: Path
    label: Path | None


def read_list(
    list_file: str | os.PathLike,
    data_root: str | os.PathLike,
    *,
    label_dir: str | None = None,
    labelled: bool = True,
) -> list[Item]:
    """Reads a list file in either format and checks that every file it names exists.

    * Two columns, as in the source of Caffe's ImageSegData: `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png`, both
      relative to `data_root`, with or without the leading slash. The id is the image's file name without suffix.
      With `labelled=False` the second column is optional and ignored.
    * One id per line, as in VOC's ImageSets: the image is JPEGImages/ID with any of IMAGE_SUFFIXES, the label map is
      `label_dir`/ID.png (default: SegmentationClassAug if the data set has it, else SegmentationClass).

    Raises InputError for a list that is missing, empty or malformed, that repeats an id, or that names missing files.
    """
    list_file, root = Path(list_file), Path(data_root)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give the data set's root, which holds JPEGImages.")
    lines = [(number, line.split()) for number, line in enumerate(read_lines(list_file), 1) if line.strip()]
    if not lines:
        raise InputError(f"{list_file} is empty: give one image a line.")
    if labelled and label_dir is None:
        label_dir = next((name for name in LABEL_FOLDERS if (root / name).is_dir()), LABEL_FOLDERS[-1])

    items: list[Item] = []
    seen: dict[str, int] = {}
    for number, columns in lines:
        item = _parse(columns, root, label_dir, labelled)
        if item is None:
            wanted = "an id, or an image and a label file" if labelled else "an id or an image file"
            raise InputError(f"{list_file}, line {number}: '{' '.join(columns)}' is not {wanted}.")
        if item.id in seen:
            raise InputError(f"{list_file}, line {number}: '{item.id}' is already on line {seen[item.id]}; remove one.")
        seen[item.id] = number
        items.append(item)

    _check_present([path for item in items for path in (item.image, item.label) if path], list_file)
    return items


def select(items: list[Item], ids: list[str]) -> list[Item]:
    """The items with the given ids, in the order of `ids`. Raises InputError for an id that the list lacks."""
    by_id = {item.id: item for item in items}
    unknown = [name for name in ids if name not in by_id]
    if unknown:
        nearest = get_close_matches(unknown[0], by_id, n=1, cutoff=0) or ["nothing"]
        raise InputError(f"The list has no image {', '.join(unknown)}; the nearest to the first is {nearest[0]}.")
    return [by_id[name] for name in ids]


def read_classes(path: str | os.PathLike) -> list[str]:
    """Reads class names, one per line in the order of their label values.

    Raises InputError for an empty file and for duplicate names; only `void`, a value without a class, may repeat.
    """
    names = [line.strip() for line in read_lines(Path(path)) if line.strip()]
    if not names:
        raise InputError(f"{path} is empty: give one class name a line, in the order of the label values.")
    doubles = sorted({name for name in names if name != VOID and names.count(name) > 1})
    if doubles:
        raise InputError(f"{path} names {', '.join(doubles)} more than once: every class needs a name of its own.")
    return names


def write_lines(path: str | os.PathLike, lines: Iterable[str]) -> None:
    """Writes a text file of these lines atomically."""
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. Raises InputError if it is unreadable or not text."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def _parse(columns: list[str], root: Path, label_dir: str | None, labelled: bool) -> Item | None:
    """The item of a line, or None if the line is malformed."""
    names_image = Path(columns[0]).suffix.lower() in IMAGE_SUFFIXES
    if names_image and len(columns) == (2 if labelled else min(len(columns), 2)):
        image, *label = (root / column.lstrip("/") for column in columns)
        return Item(image.stem, image, label[0] if labelled else None)
    if not names_image and len(columns) == 1:
        name = columns[0]
        stem = root / "JPEGImages" / name
        image = next((path for suffix in IMAGE_SUFFIXES if (path := Path(f"{stem}{suffix}")).is_file()), None)
        return Item(name, image or Path(f"{stem}.jpg"), root / label_dir / f"{name}.png" if labelled else None)
    return None


def _check_present(paths: list[Path], list_file: Path) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        first = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{len(missing)} of the {len(paths)} files that {list_file} names are missing ({first}): "
            "check the data root and the list."
        )
