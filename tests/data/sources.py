"""Helpers that build and pack small data sets in the published layouts, and run the tools."""

import tarfile
import zipfile
from pathlib import Path

from PIL import Image


def save_photograph(path: Path, shape: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", shape[::-1]).save(path)


def pack(folder: Path, archive: Path) -> Path:
    """Packs a folder, including its name, into a .tar, .tgz, .tar.gz or .zip."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            for path in sorted(folder.rglob("*")):
                zipped.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as tar:
            tar.add(folder, folder.name)
    return archive


