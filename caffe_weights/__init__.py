"""Caffe files to numpy and back."""


class CaffeFileError(ValueError):
    """A Caffe file cannot be read or written as asked; the message is one sentence that names the file and why."""
