"""The package's exception."""


class CaffeFileError(ValueError):
    """A Caffe file cannot be read or written; the message is one sentence with the file and the reason."""
