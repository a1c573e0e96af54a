"""The one exception for things a user can put right."""


class InputError(ValueError):
    """A file, label, shape or flag that was given is wrong.

    The message is one sentence that names the thing and the remedy; the tools print it and exit with status 2.
    """


class ToldElsewhere(InputError):
    """An InputError of which another process of the run tells the user."""
