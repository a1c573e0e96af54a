"""Atomic writes, checksums, and verification of archives."""

import hashlib
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from a2s_repro.errors import InputError, not_written

PART = ".a2s_part."
"""Beginning of a temporary file's name. No other program's files are named so, and `remove_leftovers` removes them."""


def make_folder(path: str | os.PathLike) -> None:
    """Makes a folder, and those above it. Raises InputError where nothing can be made, as in /proc."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        raise not_written(path, error) from error


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Writes a file atomically: yields a temporary path, which is flushed to disk and renamed to `path` on success.

    The temporary file is in the folder of `path`, which is made if needed, and has its suffix. If the block raises, the
    temporary file is removed and an existing `path` is unchanged.

    Raises InputError where nothing can be made.
    """
    path = Path(path)
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=PART, suffix=path.suffix, dir=path.parent)
    except FileNotFoundError as error:
        raise not_written(path, error) from error
    except OSError as error:
        error.filename = str(path)
        raise
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
        if error.errno and error.filename in (None, str(temporary)):  # a failed write names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Removes temporary files of killed processes from a folder; no process may be writing to it."""
    for path in Path(folder).glob(f"{PART}*"):
        if re.fullmatch(rf"{re.escape(PART)}[a-z0-9_]{{8}}(\.\w+)?", path.name) and path.is_file():
            path.unlink()


def is_at(path: str | os.PathLike, file: int) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(file))
    except OSError:
        return False


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


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def check_published(path: str | os.PathLike) -> None:
    """Verifies the checksums of another program's file of tensors: an archive's, and that in a name of torch.hub.

    Such a name, as vgg16-397923af.pth, ends in the first digits of the file's SHA-256. Raises ValueError.
    """
    if zipfile.is_zipfile(path):
        check_archive(path)
    named = re.search(r"-([0-9a-f]{8,64})\.pth$", Path(path).name)
    if named and not sha256_of(path).startswith(named[1]):
        raise ValueError(f"its SHA-256 does not begin with {named[1]}, as its name has it: download it again")


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
