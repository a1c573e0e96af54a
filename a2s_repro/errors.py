"""The exception for mistakes that the user can correct, and the sentences that many modules have in common."""

import errno
import os
from collections.abc import Collection, Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """A file, label, shape or flag that was given is wrong.

    The message is one sentence that names the thing and the remedy; the tools print it and exit with status 2.
    """


class ToldElsewhere(InputError):
    """An InputError of which another process of the run tells the user."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message without its full stop; the error's type where the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")


def printable(text: object) -> str:
    """The text with escapes in place of characters that would act on a terminal: control characters, line ends."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in str(text))


def shortened(text: object, length: int = 120) -> str:
    """The printable text, cut after `length` characters."""
    whole = printable(text)
    return whole if len(whole) <= length else f"{whole[:length]}... ({len(whole)} characters)"


def check_known(name: str, value: object, known: Collection) -> None:
    """Raises InputError if `value`, the setting `name`, is not among the known ones."""
    if value not in known:
        raise InputError(f"{name} '{value}' is not known; it is one of {', '.join(map(str, known))}.")


def nearest(name: str, known: Iterable[str]) -> str:
    """The three known names closest to `name`, for error messages."""
    return ", ".join(get_close_matches(name, known, n=3, cutoff=0))


def not_written(path: str | os.PathLike, error: Exception) -> InputError:
    """The error for a file or folder that could not be written."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    number = (isinstance(error, OSError) and error.errno) or errno.EIO
    remedy = _REMEDIES.get(number, "is the disk full?" if number in _FULL else "give another path.")
    return InputError(f"{path} cannot be written ({reason}): {remedy}")


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_REMEDIES = {
    errno.ENAMETOOLONG: "give a shorter name.",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "check its permissions, or give another path."),
}
