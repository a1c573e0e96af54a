"""The one exception for things a user can put right."""


class InputError(ValueError):
    """A file, label, shape or flag that was given is wrong.

    The message is one sentence that names the thing and the remedy; the tools print it and exit with status 2.
    """


class ToldElsewhere(InputError):
    """An InputError of which another process of the run tells the user."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message without its full stop; the error's type where the message is empty."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
