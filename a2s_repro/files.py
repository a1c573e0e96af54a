"""Files that are never seen half-written, and that are known to be whole."""

import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and renamed to `path`.

    The temporary keeps the suffix of `path`. If the block raises, it is removed and an existing `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Removes the temporaries that killed processes have left in a folder; none may be at work in it."""
    for path in Path(folder).glob(".*"):
        if re.fullmatch(r"\..+\.[a-z0-9_]{8}(\.\w+)?", path.name):
            path.unlink()


def _flush(path: Path) -> None:
    """Onto the disk: the content of a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_archive(path: str | os.PathLike) -> None:
    """Looks through what torch.save wrote before torch.load does, which compares no checksums.

    Raises ValueError for a wrong checksum, and for parts that would become larger than the file: torch.save compresses
    nothing.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > os.path.getsize(path):
            raise ValueError("its parts claim to be larger than the file")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of its part {damaged} is wrong")
