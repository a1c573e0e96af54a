"""Files that are mistaken for a model, recognised by their first bytes."""

import os

_HDF5 = b"\x89HDF\r\n\x1a\n"
_GIT_LFS = b"version https://git-lfs.github.com/"


def foreign_kind(path: str | os.PathLike) -> str | None:
    """The kind of a file that is no model, image or archive, and the remedy, as the end of a sentence; or None.

    Raises OSError if the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(_GIT_LFS):
        return "is a Git LFS pointer, which stands for the file: fetch the file by `git lfs pull`"
    if head.startswith(_HDF5):
        return "is an HDF5 file: write it from Caffe in the binary format (snapshot_format: BINARYPROTO)"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "is a web page: download the file that the page links to"
    return None
