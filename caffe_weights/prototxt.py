"""Caffe's text format, `.prototxt`."""

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.text_encoding import CEscape


class Word(str):
    """An unquoted value: the name of an enum's entry, such as MAX."""


def prototxt(message: Mapping[str, Any]) -> str:
    """The text of a message: one field per line, in the order of the mapping.

    Values are strings, Words, bools, numbers, mappings (messages), and sequences of those (repeated fields).
    """
    return "".join(f"{line}\n" for line in _lines(message))


def _lines(message: Mapping[str, Any]) -> Iterator[str]:
    for field, value in message.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, Mapping):
                yield f"{field} {{"
                yield from (f"  {line}" for line in _lines(item))
                yield "}"
            else:
                yield f"{field}: {_scalar(item)}"


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return value
    if isinstance(value, str):
        return f'"{CEscape(value, as_utf8=True)}"'
    return str(value).lower() if isinstance(value, bool) else repr(value)
