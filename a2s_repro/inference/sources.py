"""Sources to segment: images, videos, folders and glob patterns of them, and cameras."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from a2s_repro.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


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


def find_sources(inputs: Sequence[str | os.PathLike], results: str | os.PathLike | None = None) -> list[Source]:
    """Expands inputs to sources, in the order of the inputs.

    An input is a file; a folder, which stands for all images and videos in it and its subfolders, sorted by name and
    without hidden ones; a glob pattern such as `photos/*.jpg` or `**/*.png`; or the number of a camera. Results keep
    the relative path of a file within an input folder, or else the file's name. Duplicate files count once; files in
    the folder `results` are skipped.

    Raises InputError for an input that does not exist or is empty, and for two files with the same result name.
    """
    by_name: dict[str, Source] = {}
    for source in (source for given in inputs for source in _sources(str(given), results)):
        other = by_name.setdefault(source.name, source)
        if other.is_camera != source.is_camera or Path(str(other.path)).resolve() != Path(str(source.path)).resolve():
            raise InputError(
                f"{other.path} and {source.path} would be written under one name, {source.name}: "
                "segment them into separate folders."
            )
    return list(by_name.values())


def _sources(given: str, results: str | os.PathLike | None) -> Iterator[Source]:
    path = Path(given)
    if path.is_dir():
        own = None if results is None else Path(results).resolve()
        listed = (file for file in sorted(path.rglob("*")) if _is_listed(file.relative_to(path)) and file.is_file())
        files = [file for file in listed if own not in file.resolve().parents]
        if not files:
            raise InputError(f"{given} holds no image or video ({' '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)}).")
        yield from (Source(file.relative_to(path).with_suffix("").as_posix(), file) for file in files)
    elif path.exists():
        yield Source(path.stem, path)
    elif given.isdecimal():
        yield Source(f"camera_{int(given)}", int(given))
    elif matches := [match for match in sorted(map(Path, glob.glob(given, recursive=True))) if match.is_file()]:
        yield from (Source(match.stem, match) for match in matches)
    else:
        raise InputError(f"{given} is no file, folder, pattern of existing files or number of a camera: correct it.")


def _is_listed(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES
