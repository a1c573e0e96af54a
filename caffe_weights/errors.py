"""The one exception of this package."""


class CaffeFileError(ValueError):
    """A Caffe file cannot be read or written as asked; the message is one sentence that names the file and why."""
