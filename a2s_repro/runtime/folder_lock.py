"""Exclusive use of a folder by one process."""

import fcntl
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from a2s_repro.errors import InputError, not_written
from a2s_repro.files import is_at, make_folder


class FolderLock:
    """Exclusive use of a folder, from `acquire` to `release`.

    The lock (flock) is on the file `.lock` in the folder, which `release` removes. The kernel drops it when the process
    ends, however it ends: a killed process leaves the file, but no lock. Forked processes do not inherit it.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self._path = self.folder / ".lock"
        self._file: int | None = None
        self._made = False

    def acquire(self) -> None:
        """Creates the folder if needed.

        Raises InputError where nothing can be made, and, naming the process, if another one uses the folder.
        """
        self._made = not self.folder.exists()
        make_folder(self.folder)
        while self._file is None:
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError as error:
                raise not_written(self.folder, error) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(file, 200).decode(errors="replace").strip()
                os.close(file)
                raise InputError(
                    f"{self.folder} is in use{holder and f' by {holder}'}: wait until that has ended, or give another "
                    "folder."
                ) from None
            except OSError as error:  # a network file system without locks
                warnings.warn(
                    f"{self.folder} cannot be locked ({error.strerror}): start nothing else in this folder.",
                    stacklevel=2,
                )
            if is_at(self._path, file):
                self._file = file
                _locks.add(file)
            else:  # its holder has just removed it
                os.close(file)
        program = Path(sys.argv[0])
        name = program.parent.name if program.name == "__main__.py" else program.name
        with suppress(OSError):  # the name of the holder is a courtesy, for which a full disk may have no room
            os.ftruncate(self._file, 0)
            os.write(self._file, f"process {os.getpid()} ({name})\n".encode(errors="replace"))

    def check(self) -> None:
        """Raises InputError if the folder was removed or replaced since `acquire`."""
        if self._file is not None and not is_at(self._path, self._file):
            raise InputError(
                f"{self.folder} was removed or replaced while it was written to: what it held before is gone; "
                "run the command again."
            )

    def release(self) -> None:
        """Removes the lock, and the folder if `acquire` made it and nothing was written to it."""
        if self._file is None:
            return
        if is_at(self._path, self._file):
            self._path.unlink()
            if self._made:
                with suppress(OSError):  # it is not empty
                    self.folder.rmdir()
        _locks.discard(self._file)
        os.close(self._file)
        self._file = None

    def __enter__(self) -> "FolderLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


_locks: set[int] = set()
"""Open files of the locks that this process holds."""


def _close_locks() -> None:
    for file in _locks:
        os.close(file)
    _locks.clear()


os.register_at_fork(after_in_child=_close_locks)
