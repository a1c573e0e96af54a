"""Caffe's text format, `.prototxt`: protobuf's, for messages of any of Caffe's forks.

protobuf's own reader needs a schema, which differs between the forks. Here its tokenizer finds the words of a file, and
a field keeps the type that its value has in the text.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.text_encoding import CEscape
from google.protobuf.text_format import ParseError, Tokenizer

from caffe_weights.errors import CaffeFileError

Fields = dict[str, list]
"""A message as it was read: the values of each field in the order of the text. Messages are Fields, too."""

_CLOSING = {"{": "}", "<": ">"}
_DEEPEST = 100
"""Maximum depth of messages within messages, as in protobuf."""


class Word(str):
    """An unquoted value: the name of an enum's entry, such as MAX."""


def read_prototxt(path: str | os.PathLike) -> Fields:
    """Reads a `.prototxt`; comments are skipped, and every layer is read whatever its phase (see `layers_of_phase`).

    Raises CaffeFileError with the line of an error, and OSError if the file cannot be opened.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CaffeFileError(f"{path} is not a text file.") from None
    try:
        return parse_prototxt(text)
    except CaffeFileError as error:
        raise CaffeFileError(f"{path}: {error}") from None


def parse_prototxt(text: str) -> Fields:
    """The message of a text. Raises CaffeFileError with the line of an error."""
    try:
        return _message(Tokenizer(text.splitlines()), "", 0)
    except ParseError as error:
        raise CaffeFileError(f"{error} is no protobuf text.") from None


def layers_of_phase(net: Fields, phase: str) -> list[Fields]:
    """The layers (`layer`, or `layers` of 2014) that Caffe builds for a phase, "TRAIN" or "TEST", in file order.

    As in Caffe's Net::FilterNet, for a net of level 0 without stages: a layer with `include` rules is built if one of
    them is met, any other unless one of its `exclude` rules is met.
    """

    def met(rule: Fields) -> bool:
        level = rule.get("min_level", [0])[-1] <= 0 <= rule.get("max_level", [0])[-1]
        return level and rule.get("phase", [phase])[-1] == phase and not rule.get("stage")

    def built(layer: Fields) -> bool:
        if layer.get("include"):
            return any(map(met, layer["include"]))
        return not any(map(met, layer.get("exclude", [])))

    return list(filter(built, net.get("layer", []) + net.get("layers", [])))


def _message(tokens: Tokenizer, end: str, depth: int) -> Fields:
    """Reads fields up to `end`, which is consumed; up to the end of the text if `end` is empty."""
    if depth > _DEEPEST:
        raise CaffeFileError(f"messages are nested more than {_DEEPEST} deep.")
    fields: Fields = {}
    while not (tokens.AtEnd() if not end else tokens.TryConsume(end)):
        name = _name(tokens)
        values = fields.setdefault(name, [])
        colon = tokens.TryConsume(":")
        if tokens.TryConsume("["):
            while not tokens.TryConsume("]"):
                values.append(_value(tokens, depth, True))
                tokens.TryConsume(",")
        else:
            values.append(_value(tokens, depth, colon))
        if not tokens.TryConsume(","):
            tokens.TryConsume(";")
    return fields


def _name(tokens: Tokenizer) -> str:
    if not tokens.TryConsume("["):
        return tokens.ConsumeIdentifier()
    parts = [tokens.ConsumeIdentifier()]  # an extension, [package.name]
    while tokens.TryConsume("."):
        parts.append(tokens.ConsumeIdentifier())
    tokens.Consume("]")
    return ".".join(parts)


def _value(tokens: Tokenizer, depth: int, scalar: bool) -> Any:
    """A message, or a scalar where a colon allows one."""
    for opening, closing in _CLOSING.items():
        if tokens.TryConsume(opening):
            return _message(tokens, closing, depth + 1)
    if not scalar:
        raise tokens.ParseError("Expected a colon or a message")
    if tokens.token[:1] in ("'", '"'):
        return tokens.ConsumeString()
    word = tokens.token
    if not (word[:1].isalnum() or word[:1] in ("_", "-", "+", ".")):
        raise tokens.ParseError("Expected a value")
    tokens.NextToken()
    return _scalar_of(word)


def _scalar_of(word: str) -> bool | int | float | Word:
    if word in ("true", "false"):
        return word == "true"
    if word[0].isalpha() or word[0] == "_":
        return Word(word)
    try:
        return int(word, 16) if "x" in word.lower() else int(word)
    except ValueError:
        pass
    try:
        return float(word.rstrip("fF"))
    except ValueError:
        return Word(word)


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
