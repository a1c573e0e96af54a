"""List files, which pair images with label maps."""

import codecs
import os
from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from a2s_repro.errors import InputError, shortened
from a2s_repro.files import refuse_foreign, replacing

VOID = "void"
"""Name, in a file of class names, of a label value without a class."""

IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
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
      relative to `data_root`, with or without the leading slash. The id is the image's file name without suffix, and
      where images of several folders have one name the path, as in seqA/0001. With `labelled=False` the second column
      is optional and ignored.
    * One id per line, as in VOC's ImageSets: the image is JPEGImages/ID with any of IMAGE_SUFFIXES, the label map is
      `label_dir`/ID with any of LABEL_SUFFIXES (default: SegmentationClassAug if the data set has it, else
      SegmentationClass). Suffixes may be in capitals.

    Names with spaces are recognised by the files that exist; a tab always separates columns. A repeated line makes its
    image appear more often. Raises InputError for a list that is missing, empty or malformed, that gives one image two
    label maps, that leads out of the data root, or that names missing files.
    """
    list_file, root = Path(list_file), Path(data_root)
    check_root(root)
    lines = [(number, line.strip()) for number, line in enumerate(read_lines(list_file), 1) if line.strip()]
    if not lines:
        raise InputError(f"{list_file} is empty: give one image a line.")
    if labelled and label_dir is None:
        label_dir = next((name for name in LABEL_FOLDERS if (root / name).is_dir()), LABEL_FOLDERS[-1])

    items: list[Item] = []
    seen: dict[Path, tuple[int, Item]] = {}
    for number, line in lines:
        item = _parse(line, root, label_dir, labelled)
        if item is None:
            wanted = "an id, or an image and a label file" if labelled else "an id or an image file"
            hint = "; separate names with spaces by a tab" if line.count(" ") > 1 else ""
            raise InputError(f"{list_file}, line {number}: '{shortened(line)}' is not {wanted}{hint}.")
        if ".." in Path(item.id).parts or Path(item.id).is_absolute():
            raise InputError(f"{list_file}, line {number}: '{shortened(line)}' leads out of the data root: remove it.")
        first, same = seen.setdefault(item.image, (number, item))
        if same.label != item.label:
            raise InputError(
                f"{list_file}, line {number}: '{shortened(item.id)}' is already on line {first}, with another label "
                "map; remove one."
            )
        items.append(item)

    items = _with_ids_apart(items, root)
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
    if unprintable := [name for name in names if not name.isprintable()]:
        raise InputError(f"{path} names a class '{shortened(unprintable[0])}': remove its control characters.")
    return names


def read_class_weights(path: str | os.PathLike) -> tuple[float, ...]:
    """Reads weights of the classes, one number a line in the order of their label values. Raises InputError."""
    weights = []
    for number, line in enumerate(read_lines(Path(path)), 1):
        try:
            weights += [float(line)] if line.strip() else []
        except ValueError:
            raise InputError(f"{path}, line {number}: '{shortened(line)}' is not a number.") from None
    return tuple(weights)


def check_root(root: Path) -> None:
    """Raises InputError if the root of a data set is not a folder."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give the data set's root, which holds JPEGImages.")


def write_lines(path: str | os.PathLike, lines: Iterable[str]) -> None:
    """Writes a text file of these lines atomically."""
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, or with a byte-order mark in UTF-16.

    Raises InputError if it is unreadable, not text, or a pointer or page in place of the file (`refuse_foreign`).
    """
    try:
        content = path.read_bytes()
        refuse_foreign(path)
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if utf16 else "utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8: save it in that encoding.") from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: correct the path.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def _parse(line: str, root: Path, label_dir: str | None, labelled: bool) -> Item | None:
    """The item of a line, or None if the line is malformed."""
    if "\t" in line:
        return _of_columns([column.strip() for column in line.split("\t")], root, label_dir, labelled)
    words = line.split()
    item = _of_columns(words, root, label_dir, labelled)
    if len(words) == 1 or (item and _exists(item)):
        return item
    splits = ([" ".join(words[:n]), " ".join(words[n:])] for n in range(1, min(len(words), _MOST_WORDS)))
    spaced = (_of_columns(columns, root, label_dir, labelled) for columns in ([line], *splits))
    return next((other for other in spaced if other and _exists(other)), item)


_MOST_WORDS = 20
"""Maximum number of words in an image's name."""


def _exists(item: Item) -> bool:
    return all(os.path.isfile(path) for path in (item.image, item.label) if path)


def _with_ids_apart(items: list[Item], root: Path) -> list[Item]:
    """The items; ids that images of several folders have in common are replaced by paths relative to the root."""
    images = Counter(name for name, _ in {(item.id, item.image) for item in items})
    return [item if images[item.id] == 1 else item._replace(id=_path_id(item.image, root)) for item in items]


def _path_id(image: Path, root: Path) -> str:
    parts = [part for part in image.relative_to(root).with_suffix("").parts if part != ".."]
    return "/".join(parts[1:] if parts[0] == "JPEGImages" else parts)


def _of_columns(columns: list[str], root: Path, label_dir: str | None, labelled: bool) -> Item | None:
    names_image = Path(columns[0]).suffix.lower() in IMAGE_SUFFIXES
    if names_image and len(columns) == (2 if labelled else min(len(columns), 2)):
        image, *label = (root / column.lstrip("/") for column in columns)
        return Item(image.stem, image, label[0] if labelled else None)
    if not names_image and len(columns) == 1:
        name = columns[0]
        stem = root / "JPEGImages" / name
        label = _with_suffix(root / label_dir / name, LABEL_SUFFIXES) if labelled else None
        return Item(name, _with_suffix(stem, IMAGE_SUFFIXES), label)
    return None


def _with_suffix(stem: Path, suffixes: tuple[str, ...]) -> Path:
    """The file with the first of the suffixes that exists, in small letters or capitals; or else with the first."""
    spelled = (*suffixes, *(suffix.upper() for suffix in suffixes))
    paths = (f"{stem}{suffix}" for suffix in spelled)
    return Path(next(filter(os.path.isfile, paths), f"{stem}{suffixes[0]}"))


def _check_present(paths: list[Path], list_file: Path) -> None:
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        first = ", ".join(map(shortened, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{len(missing)} of the {len(paths)} files that {list_file} names are missing ({first}): "
            "check the data root and the list."
        )
