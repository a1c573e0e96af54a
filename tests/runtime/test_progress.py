"""Progress: a bar on a terminal, which keeps its figures on a narrow one; lines with the time in a file."""

import fcntl
import os
import pty
import re
import struct
import termios
from contextlib import suppress

from a2s_repro.runtime import progress
from a2s_repro.runtime.progress import Progress

CLOCK = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
FIGURES = "7.5 images/s, loss 1.778 res1 1.771 res075 1.802 res05 1.787"


def test_in_a_file_short_work_is_one_line_without_control_characters(capsys):
    assert list(Progress([1, 2, 3], "checking", "image")) == [1, 2, 3]
    assert re.fullmatch(rf"{CLOCK} checking: 3 of 3 image, 00:00\n", capsys.readouterr().err)


def test_in_a_file_long_work_is_a_line_every_half_minute(capsys, monkeypatch):
    seconds = 0
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds)
    with Progress(title="evaluating", unit="image", total=9) as bar:
        for _ in range(9):
            seconds += 12
            bar.update()
    lines = [re.sub(f"^{CLOCK} evaluating: ", "", line) for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "3 of 9 image, 00:36, 01:12 left",
        "6 of 9 image, 01:12, 00:36 left",
        "9 of 9 image, 01:48",
    ]


def test_in_a_file_the_figures_of_a_run_are_a_line_each(capsys):
    with Progress(title="run", total=40, initial=20) as bar:
        bar.show(FIGURES)
        bar.update(20)
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"{CLOCK} run: 20 of 40 it, {re.escape(FIGURES)}, 00:00", first)
    assert re.fullmatch(rf"{CLOCK} run: 40 of 40 it, 00:00", last)


def test_nothing_is_shown_without_work_or_in_other_processes(capsys):
    list(Progress([], "checking", "image"))
    list(Progress([1], "checking", "image", shown=False))
    assert capsys.readouterr().err == ""


def test_a_name_cannot_act_on_a_terminal(capsys):
    list(Progress([1], "a\x1b[2J\nerror: b", "image"))
    written = capsys.readouterr().err
    assert written.count("\n") == 1 and "\x1b" not in written


def test_a_terminal_of_80_columns_keeps_speed_and_losses(monkeypatch):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with Progress(title="a run of a long name", total=6000, initial=5999) as bar:
            bar.show(FIGURES + ", lr 1.0e-03")
            bar.update()
    shown = b""
    with suppress(OSError):  # the end of a terminal's output
        while part := os.read(master, 4096):
            shown += part
    os.close(master)
    last = shown.decode().rstrip().split("\r")[-1]
    assert last.startswith(f"6000/6000, {FIGURES}") and len(last) <= 80
