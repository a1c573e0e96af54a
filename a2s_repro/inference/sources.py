"""Sources to segment: images, videos, folders and glob patterns of them, and cameras."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from a2s_repro.errors import InputError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".wmv", ".3gp"),
    ".ogv",
)

"""Kinds that OpenCV decodes."""

RESULT_FOLDERS = ("labels", "overlays", "attention", "scores")
RESULT_FILES = ("legend.png", "segment.json", "sources.jsonl")
"""Folders and files that a batch job makes in its folder of results."""


class Source(NamedTuple):
    """An image, a video or a camera."""

    name: str
    """Relative path of the results, without suffix."""
    path: Path | int
    """File, or number of a camera."""

    @property
    def is_camera(self) -> bool:
        return isinstance(self.path, int)

    @property
    def is_image(self) -> bool:
        """Whether the source is a single image: any file without a video suffix."""
        return not self.is_camera and self.path.suffix.lower() not in VIDEO_SUFFIXES


def find_sources(
    inputs: Sequence[str | os.PathLike],
    results: str | os.PathLike | None = None,
    left_out: Counter[str] | None = None,
) -> list[Source]:
    """Expands inputs to sources, in the order of the inputs.

    An input is a file; a folder, which stands for all images and videos in it and its subfolders, linked ones too,
    sorted by name and without hidden ones; a glob pattern such as `photos/*.jpg` or `**/*.png`; or the number of a
    camera. Results keep the relative path of a file within an input folder, or else the file's name, without suffix
    unless files of an input differ in nothing else. Duplicate files count once. Earlier results in the folder `results`
    are skipped, and files of other kinds are counted in `left_out`, by suffix.

    Raises InputError for an input that does not exist or is empty, and for two files with the same result name.
    """
    by_name: dict[str, Source] = {}
    left_out = Counter() if left_out is None else left_out
    for source in (source for given in inputs for source in _sources(str(given), results, left_out)):
        other = by_name.setdefault(source.name, source)
        if other.is_camera != source.is_camera or Path(str(other.path)).resolve() != Path(str(source.path)).resolve():
            raise InputError(
                f"{other.path} and {source.path} would be written under one name, {source.name}: "
                "segment them into separate folders."
            )
    return list(by_name.values())


def _sources(given: str, results: str | os.PathLike | None, left_out: Counter[str]) -> Iterator[Source]:
    path = Path(given)
    if path.is_dir():
        own = None if results is None else Path(results).resolve()
        files = []
        for file in sorted(_files(path, own)):
            if file.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
                files.append(file)
            else:
                left_out[file.suffix.lower()] += 1
        if not files:
            raise InputError(f"{given} holds no image or video ({' '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)}).")
        yield from _named([file.relative_to(path) for file in files], files)
    elif path.exists():
        yield Source(path.stem, path)
    elif given.isdecimal():
        yield Source(f"camera_{int(given)}", int(given))
    elif matches := [match for match in sorted(map(Path, glob.glob(given, recursive=True))) if match.is_file()]:
        yield from _named([Path(match.name) for match in matches], matches)
    else:
        raise InputError(f"{given} is no file, folder, pattern of existing files or number of a camera: correct it.")


def _named(names: Sequence[Path], files: Sequence[Path]) -> Iterator[Source]:
    """Sources named without suffix; with it where several differ in nothing else, as IMG_1.JPG and IMG_1.MOV do."""
    short = [name.with_suffix("").as_posix() for name in names]
    uses = Counter(name.with_suffix("").as_posix() for name in set(names))
    for name, key, file in zip(names, short, files, strict=True):
        yield Source(key if uses[key] == 1 else name.as_posix(), file)


def _files(folder: Path, own: Path | None) -> Iterator[Path]:
    """The files in a folder and its subfolders but hidden ones and results in `own`; each subfolder once."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        here = Path(root).resolve()
        folders[:] = [name for name in folders if not name.startswith(".")]
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        if here == own:
            folders[:] = [name for name in folders if name not in RESULT_FOLDERS]
        for name in names:
            path = Path(root, name)
            if not name.startswith(".") and path.is_file() and not (here == own and name in RESULT_FILES):
                yield path
