"""Pools of threads and processes that end with the block, or with the process, that uses them."""

import ctypes
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def threads(number: int) -> Iterator[Executor]:
    """That many threads; what they have not begun at the end of the block, as after an exception in it, is cancelled.

    The block of a ThreadPoolExecutor would do all of it first, be it ten thousand pictures.
    """
    pool = ThreadPoolExecutor(number)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def processes(number: int) -> Iterator[Executor]:
    """The same of processes. They leave Ctrl-C to this one, and die when it is killed."""
    pool = ProcessPoolExecutor(number, initializer=_follow_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of Linux's sys/prctl.h
    if prctl := getattr(ctypes.CDLL(None), "prctl", None):
        prctl(set_parent_death_signal, signal.SIGKILL)
