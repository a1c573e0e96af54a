"""Atomic writes, and verification of archives."""

import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from a2s_repro.errors import InputError


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Writes a file atomically: yields a temporary path, which is flushed to disk and renamed to `path` on success.

    The temporary file is in the folder of `path` and has its suffix. If the block raises, the temporary file is removed
    and an existing `path` is unchanged.
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
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a failed write names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Removes temporary files of killed processes from a folder; no process may be writing to it."""
    for path in Path(folder).glob(".*"):
        if re.fullmatch(r"\..+\.[a-z0-9_]{8}(\.\w+)?", path.name):
            path.unlink()


def _flush(path: Path) -> None:
    """Flushes a file's content or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_foreign(path: str | os.PathLike) -> None:
    """Raises InputError for a Git LFS pointer, a web page or an HDF5 file, and OSError if the file cannot be read."""
    from caffe_weights.foreign import foreign_kind  # imports protobuf, which few commands need

    if kind := foreign_kind(path):
        raise InputError(f"{path} {kind}.")


def check_archive(path: str | os.PathLike) -> None:
    """Verifies the checksums in an archive of torch.save, because torch.load does not.

    Raises ValueError for a wrong checksum, and for entries that claim to be larger than the file (torch.save does not
    compress).
    """
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > os.path.getsize(path):
            raise ValueError("its parts claim to be larger than the file")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of its part {damaged} is wrong")
