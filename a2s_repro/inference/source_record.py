"""The record of which source each result in a folder was made of."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

RECORD = "sources.jsonl"
"""File of the record: a line of JSON for each result, of which the last of a name counts."""


@dataclasses.dataclass(frozen=True)
class Stamp:
    """A source as it was when it was read: another path, size or time of change is another source."""

    source: str
    """Absolute path."""
    bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Raises OSError if the file is missing."""
        status = path.stat()
        return cls(str(path.resolve()), status.st_size, status.st_mtime_ns)

    def is_of(self, other: "Stamp") -> bool:
        """Whether both are of one content: the same path, or a moved file with its time of change."""
        same_place = self.source == other.source or not os.path.exists(other.source)
        return same_place and (self.bytes, self.mtime_ns) == (other.bytes, other.mtime_ns)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A finished result."""

    name: str
    """Name of the result, a relative path without suffix."""
    stamp: Stamp
    kinds: tuple[str, ...]
    """Kinds of its files, by which `Results` names them."""
    limit: int | None = None
    """Maximum number of frames of a video."""
    orientation: int = 1
    """EXIF orientation by which an image was turned upright before it was segmented."""


class SourceRecord:
    """Entries of a folder's results. Several processes may append to one folder, each for its own sources."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RECORD
        self._entries: dict[str, Entry] = {}
        self._torn = False
        if self._path.is_file():
            content = self._path.read_text(encoding="utf-8", errors="replace")
            self._torn = bool(content) and not content.endswith("\n")
            entries = filter(None, map(_parsed, content.splitlines()))
            self._entries = {entry.name: entry for entry in entries}

    def get(self, name: str) -> Entry | None:
        return self._entries.get(name)

    def add(self, entry: Entry) -> None:
        """Appends an entry. Raises OSError if the file cannot be written."""
        before = self.get(entry.name)
        if before and before.stamp == entry.stamp and before.limit == entry.limit:
            kinds = dict.fromkeys((*before.kinds, *entry.kinds))
            entry = dataclasses.replace(entry, kinds=tuple(kinds))
        line = json.dumps(_plain(entry)) + "\n"
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("\n" + line if self._torn else line)
        self._entries[entry.name], self._torn = entry, False


def _plain(entry: Entry) -> dict[str, Any]:
    values = dataclasses.asdict(entry)
    return {**values.pop("stamp"), **values}


def _parsed(line: str) -> Entry | None:
    """The entry of a line; None for a line that a crash cut short."""
    try:
        values = json.loads(line)
        stamp = Stamp(*(values.pop(field.name) for field in dataclasses.fields(Stamp)))
        entry = Entry(stamp=stamp, **{**values, "kinds": tuple(values["kinds"])})
        return entry if isinstance(entry.name, str) and isinstance(stamp.source, str) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
