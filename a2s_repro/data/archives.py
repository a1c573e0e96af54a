"""Reads published archives, or folders unpacked from them, file by file in one pass, without unpacking to disk."""

import errno
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from a2s_repro.errors import InputError
from a2s_repro.runtime.progress import Progress

MAX_SIZE = 2**30
"""Largest accepted file, in bytes. The largest published one, COCO's training annotations, has less than half."""

MAX_IMAGE_SIZE = 2**26
"""Largest accepted photograph, label map or list, in bytes. Compression can claim a thousand times its size."""


DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    UnicodeDecodeError,
    NotImplementedError,
    RuntimeError,
)
"""Exceptions that a damaged archive raises; zipfile raises the last two for unknown compression or encryption."""


LONGEST_HEADER = 2**20
"""Largest accepted extended header of a tar file, in bytes. tarfile reads it whole before anything is known of it."""
EXTENDED_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
"""Types of the tar headers that hold a long name or other properties of the next file."""


class PublishedFiles(NamedTuple):
    """Files of a data set: where they are published and where they lie in the archive."""

    title: str
    url: str
    folder: str
    """Folder of the files in the archive; a source may lack its leading components, or all of it."""
    patterns: tuple[str, ...]
    """Patterns of the files under that folder, such as JPEGImages/*.jpg."""


class SourceFile(NamedTuple):
    """A file of an archive or a folder that matches one of the patterns."""

    path: PurePosixPath
    """Path relative to the published folder."""
    name: str
    """Location of the file, for messages."""
    size: int
    read: Callable[[], bytes]
    """Reader of the content, valid until the iterator advances. Raises InputError if the archive is damaged."""
    on_disk: Path | None
    """Path on disk, or None for a file in an archive."""


def source_files(source: Path, published: PublishedFiles) -> Iterator[SourceFile]:
    """Yields the files that match `published`, from a .tar (compressed or not), a .zip or an unpacked folder.

    Shows a progress bar. Raises InputError if the source is missing or damaged, if a file's name leads out of its
    folder, if a matching file is a link or larger than MAX_SIZE (.json) or MAX_IMAGE_SIZE, and at the end if a pattern
    matched no file.
    """
    if source.is_dir():
        files = _folder_files(source, published)
    elif source.is_file():
        files = _archive_files(source, published)
    else:
        raise InputError(
            f"{source} does not exist: give the archive of {published.title}, or the folder unpacked from it; "
            f"it is published at {published.url}."
        )
    unmet = set(published.patterns)
    for file in files:
        unmet -= {pattern for pattern in unmet if _matches(file.path, pattern)}
        yield file
    if unmet:
        raise InputError(
            f"{source} holds no {', '.join(sorted(unmet))}, which belongs to {published.title}: give the right archive "
            f"or folder; it is published at {published.url}."
        )


def _matches(path: PurePosixPath, pattern: str) -> bool:
    return len(path.parts) == len(PurePosixPath(pattern).parts) and path.match(pattern)


def _leads(published: PublishedFiles) -> list[tuple[str, ...]]:
    """Folders that may precede the matched paths: the published ones, all but the first, ..., none."""
    parts = PurePosixPath(published.folder).parts
    return [parts[i:] for i in range(len(parts) + 1)]


def _folder_files(source: Path, published: PublishedFiles) -> Iterator[SourceFile]:
    for lead in _leads(published):
        root = source.joinpath(*lead)
        paths = [path for pattern in published.patterns for path in sorted(root.glob(pattern))]
        if paths:
            break
    for path in Progress(paths, published.title, "file"):
        inside = PurePosixPath(path.relative_to(root))
        yield SourceFile(inside, str(path), path.stat().st_size, path.read_bytes, path)


def _archive_files(source: Path, published: PublishedFiles) -> Iterator[SourceFile]:
    with _refusing_damage(source), open(source, "rb") as file:
        is_zip = file.read(2) == b"PK"
        file.seek(0)
        for member in _zip_members(file, source) if is_zip else _tar_members(file, source):
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise InputError(f"{source} is unsafe to unpack ('{path}' leads out of its folder): download it again.")
            inside = _wanted(path, published)
            if inside is None:
                continue
            name = f"{source}: {path}"
            limit = MAX_SIZE if path.suffix == ".json" else MAX_IMAGE_SIZE
            if not member.regular or member.size > limit:
                what = f"claims to have {member.size} bytes" if member.regular else "is a link or no file at all"
                raise InputError(f"{name} {what}: download the archive again.")
            yield SourceFile(inside, name, member.size, partial(_read, source, member.open), None)


def _wanted(path: PurePosixPath, published: PublishedFiles) -> PurePosixPath | None:
    """The path relative to the published folder, or None if it matches no pattern."""
    for lead in _leads(published):
        if path.parts[: len(lead)] == lead:
            inside = PurePosixPath(*path.parts[len(lead) :])
            if any(_matches(inside, pattern) for pattern in published.patterns):
                return inside
    return None


class _Member(NamedTuple):
    name: str
    size: int
    regular: bool
    open: Callable[[], IO[bytes]]


class _TarInfo(tarfile.TarInfo):
    """Refuses a long extended header."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        header = super().frombuf(buf, encoding, errors)
        if header.type in EXTENDED_HEADERS and header.size > LONGEST_HEADER:
            raise tarfile.ReadError(f"a header claims to have {header.size} bytes")
        return header


def _tar_members(file: IO[bytes], source: Path) -> Iterator[_Member]:
    """Reads sequentially, because a compressed archive cannot seek."""
    with (
        Progress(title=source.name, unit="B", total=source.stat().st_size) as progress,
        tarfile.open(fileobj=progress.reading(file), mode="r|*", tarinfo=_TarInfo) as tar,
    ):
        for member in tar:
            if not member.isdir():
                yield _Member(member.name, member.size, member.isreg(), partial(tar.extractfile, member))


def _zip_members(file: IO[bytes], source: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as archive:
        for member in Progress(archive.infolist(), source.name, "file"):
            if member.filename and not member.is_dir():
                link = stat.S_ISLNK(member.external_attr >> 16)
                yield _Member(member.filename, member.file_size, not link, partial(archive.open, member))


def _read(source: Path, open_member: Callable[[], IO[bytes]]) -> bytes:
    with _refusing_damage(source), open_member() as file:
        return file.read()


@contextmanager
def _refusing_damage(source: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise InputError(f"{source} is damaged or no archive ({error}): download it again.") from None
    except OSError as error:
        if error.errno is None:  # bz2 and gzip raise it for damaged data
            raise InputError(f"{source} is damaged or no archive ({error}): download it again.") from None
        if error.errno != errno.EINVAL:  # raised by a seek to a negative offset
            raise
        raise InputError(f"{source} is damaged: it holds an impossible offset; download it again.") from None
