"""The sentences that many modules have in common."""

import errno

import pytest

from a2s_repro.errors import InputError, check_known, first_line, not_written


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("out of memory. \nat file.cpp:3"), "out of memory"),
        (RuntimeError("No such device.\n"), "No such device"),
        (RuntimeError("\n  Fatal\n"), "Fatal"),
        (EOFError(), "EOFError"),
        (AssertionError(" \n"), "AssertionError"),
    ],
    ids=repr,
)
def test_the_first_line_of_an_error_is_never_empty(error, expected):
    assert first_line(error) == expected


def test_an_unknown_value_is_refused_with_the_known_ones():
    check_known("merge", "max", {"average": 1, "max": 2})
    with pytest.raises(InputError, match=r"^layers '4' is not known; it is one of 1, 2, 3\.$"):
        check_known("layers", 4, (1, 2, 3))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.pth"), "No space left on device"),
        (OSError("short write"), "short write"),
        (RuntimeError("unexpected pos 64 vs 0.\nat inline_container.cc"), "unexpected pos 64 vs 0"),
    ],
    ids=repr,
)
def test_a_failed_write_names_the_file_and_the_reason(error, reason):
    assert str(not_written("out/x.pth", error)) == f"out/x.pth cannot be written ({reason}): is the disk full?"
