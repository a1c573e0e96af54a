"""Stopping a run between two updates when a signal asks for it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from a2s_repro.runtime import distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STDERR = 2


class StopRequest:
    """Whether this process was asked to stop."""

    signal = 0
    """The number of the signal that asked; 0 if none did."""

    def agreed(self) -> int:
        """The signal that asked any of the run's processes; all must call it."""
        return distributed.max_(self.signal)


@contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Within the block the first Ctrl-C (SIGINT) or SIGTERM is only noted.

    The second one raises KeyboardInterrupt or SystemExit (status 143); further ones act as outside of the block.
    """
    request = StopRequest()

    def note(number: int, _: Any) -> None:
        if request.signal:
            restore()
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        request.signal = number
        if distributed.is_main():  # written past Python's buffers, which the signal may have interrupted
            os.write(STDERR, b"\nfinishing this update to write a snapshot; once more drops it.\n")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
