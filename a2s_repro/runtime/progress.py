"""Progress of long work on stderr: a bar on a terminal, a line every half minute anywhere else."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import IO, Any, Generic, TypeVar

from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from a2s_repro.errors import printable

SECONDS_BETWEEN_LINES = 30

T = TypeVar("T")


class Progress(Generic[T]):
    """The progress through `total` steps, or through an iterable: `for item in Progress(items, "checking", "image")`.

    On a terminal it is tqdm's bar. In a file, which keeps every state of a bar, it is a line with the time: at every
    call of `show`, every SECONDS_BETWEEN_LINES, and at the end.

    Args:
        title: name of the work.
        unit: name of a step. "B" counts bytes.
        initial: steps done before.
        shown: whether there is anything to see; it is False in all processes but the first.
    """

    def __init__(
        self,
        items: Iterable[T] = (),
        title: str = "",
        unit: str = "it",
        *,
        total: int | None = None,
        initial: int = 0,
        shown: bool = True,
    ) -> None:
        self._items, self._title, self._unit = items, printable(title), unit
        self._total = len(items) if total is None and isinstance(items, list | tuple | dict) else total
        self._initial = self._done = self._written = initial
        self._file = sys.stderr
        self._bar: tqdm | None = None
        self._shown = shown and self._total != 0
        self._begin = self._last = time.monotonic()
        if self._shown and self._file.isatty():
            settings = {"desc": self._title, "total": self._total, "unit": unit, "initial": initial}
            # leave=None: a bar within another one disappears at its end
            self._bar = tqdm(**settings, unit_scale=unit == "B", dynamic_ncols=True, leave=None)

    def update(self, steps: int = 1) -> None:
        """Counts steps that are done."""
        self._done += steps
        if self._bar is not None:
            self._bar.update(steps)
        elif time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._write()

    def show(self, text: str) -> None:
        """Shows figures: on a terminal in front of the bar, so that a narrow one cuts the bar and not the figures."""
        if self._bar is None:
            self._write(f", {text}")
        else:
            self._bar.bar_format = "{n_fmt}/{total_fmt}{postfix}, {remaining} left {bar}"
            self._bar.set_postfix_str(text, refresh=False)

    def reading(self, file: IO[bytes]) -> Any:
        """The file, whose bytes are counted as they are read."""
        return CallbackIOWrapper(self.update, file, "read")

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> "Progress[T]":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._done > max(self._written, self._initial):
            self._write()

    def _write(self, text: str = "") -> None:
        if not self._shown:
            return
        self._last, self._written = time.monotonic(), self._done
        counted = f"{self._counted(self._done)}{'' if self._total is None else f' of {self._counted(self._total)}'}"
        elapsed = self._last - self._begin
        times = tqdm.format_interval(elapsed)
        if self._total and self._initial < self._done < self._total:
            left = elapsed * (self._total - self._done) / (self._done - self._initial)
            times = f"{times}, {tqdm.format_interval(left)} left"
        title = f"{self._title}: " if self._title else ""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {title}{counted} {self._unit}{text}, {times}"
        print(line, file=self._file, flush=True)

    def _counted(self, steps: int) -> str:
        return tqdm.format_sizeof(steps) if self._unit == "B" else str(steps)
