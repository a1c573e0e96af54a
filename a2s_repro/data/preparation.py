"""Common steps of preparing a data set: placing images, writing label maps and lists, checking them.

A prepared data root has VOC's layout: JPEGImages/ID.jpg, a folder of label maps ID.png (grey PNGs of class indices),
classes.txt, and for every list NAME the authors' two files, list/NAME.txt (image and label) and list/NAME_id.txt.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from a2s_repro.data.archives import PublishedFiles, SourceFile, source_files
from a2s_repro.data.images import jpeg_size, label_source, read_label, write_label
from a2s_repro.data.lists import read_lines, write_lines
from a2s_repro.errors import InputError
from a2s_repro.files import make_folder, replacing
from a2s_repro.runtime.pools import processes
from a2s_repro.runtime.progress import Progress

IMAGES = "JPEGImages"


class IdList(NamedTuple):
    """A published list of images."""

    count: int
    md5: str | None
    """MD5 of the text file of the sorted ids, one per line; None if it is not known."""


class Prepared(NamedTuple):
    """A data root with its images and labels in place."""

    root: Path
    lists: dict[str, list[str]]
    """The ids of each list, sorted."""
    notes: tuple[str, ...] = ()
    """Lines about the sources for the user."""

    def check(self, title: str, published: dict[str, IdList]) -> None:
        """Raises InputError naming the lists that differ from the published ones of the data set `title`."""
        wrong = [
            f"{name} has {len(ids)} images, not {published[name].count}"
            if len(ids) != published[name].count
            else f"{name} has other images"
            for name, ids in self.lists.items()
            if len(ids) != published[name].count or published[name].md5 not in (None, _md5(ids))
        ]
        if wrong:
            raise InputError(
                f"The sources do not give the published lists of {title} ({'; '.join(wrong)}): check that the "
                "downloads are complete, or use --allow-other-counts."
            )

    def write(self, label_folder: str, classes: Iterable[str], unlabelled: Iterable[str] = ()) -> None:
        """Writes classes.txt and the two files of each list; the lists in `unlabelled` have no label column."""
        for name, ids in self.lists.items():
            line = f"/{IMAGES}/{{0}}.jpg" + ("" if name in unlabelled else f" /{label_folder}/{{0}}.png")
            write_lines(self.root / "list" / f"{name}.txt", map(line.format, ids))
            write_lines(self.root / "list" / f"{name}_id.txt", ids)
        write_lines(self.root / "classes.txt", classes)

    def summary(self) -> str:
        """One line for the root and one per list: its file, its length and the MD5 of its ids."""
        lines = [f"data root: {self.root}"]
        for name, ids in self.lists.items():
            lines.append(f"list/{name}.txt: {len(ids)} images, md5 of list/{name}_id.txt {_md5(ids)}")
        return "\n".join([*lines, *self.notes])


def place(file: SourceFile, target: Path) -> None:
    """Creates `target` unless it is there: a copy from an archive, a link into an unpacked folder.

    A link is there if it leads to the file, a photograph if it has the right size, and any other file if it is equal.
    """
    if target.is_file() and _is_placed(file, target):
        return
    make_folder(target.parent)
    if file.on_disk:
        target.unlink(missing_ok=True)
        target.symlink_to(file.on_disk.resolve())
    else:
        encoded = file.read()
        with replacing(target) as temporary:
            temporary.write_bytes(encoded)


def _is_placed(file: SourceFile, target: Path) -> bool:
    if file.on_disk and target.is_symlink():
        return target.samefile(file.on_disk)
    return target.stat().st_size == file.size and (target.suffix == ".jpg" or target.read_bytes() == file.read())


def read_splits(source: Path, published: PublishedFiles, root: Path) -> list[set[str]]:
    """Places the source's id files into the root; returns the ids of each, in the order of the patterns."""
    for file in source_files(source, published):
        place(file, root / file.path)
    return [set(" ".join(read_lines(root / name)).split()) for name in published.patterns]


def place_images(files: Iterable[SourceFile], root: Path, wanted: set[str]) -> None:
    """Places the files whose ids are in `wanted` into the root's JPEGImages."""
    for file in files:
        if file.path.stem in wanted:
            place(file, root / IMAGES / file.path.name)


def encoded_labels(files: Iterable[SourceFile]) -> Iterator[tuple[str, Callable[[], tuple[bytes, str]]]]:
    """Pairs for `write_labels`: a label file's id, and a function that returns its bytes and its name."""
    return ((file.path.stem, lambda file=file: (file.read(), file.name)) for file in files)


def write_labels(
    folder: Path,
    labels: Iterable[tuple[str, Callable[[], tuple]]],
    decode: Callable[..., np.ndarray | None],
    workers: int,
) -> set[str]:
    """Writes the label maps folder/ID.png that are missing or were made of another source; returns the ids with one.

    A label map holds a digest of its source. Those without one, which were made by other programs, are kept.

    `labels` yields pairs of an id and a function that returns the arguments of `decode`; the function is called before
    the iterator advances. `decode` returns (H, W) uint8, or None to leave the image out. `workers` processes decode and
    write; with 0 workers this process does.
    """
    ids = set()

    def missing() -> Iterator[tuple[Path, tuple, str]]:
        for name, load in labels:
            path, arguments = folder / f"{name}.png", load()
            source = _digest(arguments)
            if path.is_file() and label_source(path) in (None, source):
                ids.add(name)
            else:
                yield path, arguments, source

    written = _map(partial(_write_label, decode), missing(), workers)
    return {path.stem for path in written if path}.union(ids)


def _digest(arguments: tuple) -> str:
    """A digest of what a label map is made of. Strings are left out: they name the source or the way of painting."""
    content = [argument for argument in arguments if not isinstance(argument, str)]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _write_label(decode: Callable[..., np.ndarray | None], task: tuple[Path, tuple, str]) -> Path | None:
    path, arguments, source = task
    labels = decode(*arguments)
    if labels is None:
        return None
    write_label(path, labels, source=source)
    return path


def check_pairs(root: Path, label_folder: str, ids: Iterable[str], num_classes: int, workers: int) -> None:
    """Raises InputError for the first id whose photograph or label map is missing or damaged, or if their sizes differ.

    Valid labels are 0 .. num_classes - 1 and 255.
    """
    pairs = [(root / IMAGES / f"{name}.jpg", root / label_folder / f"{name}.png") for name in sorted(ids)]
    _check_present([path for pair in pairs for path in pair])
    for _ in Progress(_map(partial(_check_pair, num_classes), pairs, workers), "checking", "image", total=len(pairs)):
        pass


def check_images(root: Path, ids: Iterable[str]) -> None:
    """Raises InputError for the first id whose photograph is missing or damaged."""
    paths = [root / IMAGES / f"{name}.jpg" for name in sorted(ids)]
    _check_present(paths)
    for path in Progress(paths, "checking", "image"):
        jpeg_size(path)


def _check_present(paths: list[Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        named = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{len(missing)} of the {len(paths)} files of the lists are missing from the sources ({named}): check that "
            "the downloads are complete."
        )


def _check_pair(num_classes: int, pair: tuple[Path, Path]) -> None:
    image, label = pair
    labels = read_label(label, num_classes)
    sizes = [f"{columns}x{rows}" for rows, columns in (jpeg_size(image), labels.shape)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{image} is {sizes[0]} pixels, its label {label} {sizes[1]}: check that the downloads are the published "
            "ones, and delete the label map to regenerate it."
        )


def _md5(ids: list[str]) -> str:
    return hashlib.md5("".join(f"{name}\n" for name in ids).encode(), usedforsecurity=False).hexdigest()


def _map(function: Callable, arguments: Iterable, workers: int) -> Iterator[Any]:
    """Ordered `map` over `workers` processes, at most 4 arguments per worker ahead; with 0 workers in this process."""
    if workers < 1:
        yield from map(function, arguments)
        return
    with processes(workers) as pool:
        pending = deque()
        for argument in arguments:
            pending.append(pool.submit(function, argument))
            if len(pending) == 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
