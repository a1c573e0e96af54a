"""Pools of threads and processes that end with the block, or with the process, that uses them."""

from __future__ import annotations

import ctypes
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")


def usual_workers(device: torch.device) -> int:
    """Number of decoding processes for a net on `device`, by the cores that this process may use.

    On a GPU a process for each core, at most 12; on a CPU the net uses the cores, and one in four decodes. torchrun's
    processes on this machine share the cores.
    """
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return cores // 4 if device.type == "cpu" else min(max(cores, 1), 12)


def ahead(
    function: Callable[[T], R], items: Iterable[T], pool: Executor, depth: int
) -> Iterator[tuple[T, Future[R]]]:
    """Pairs of an item and the future of `function(item)`, in order; at most `depth` further items are submitted."""
    pending: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        pending.append((item, pool.submit(function, item)))
        if len(pending) > depth:
            yield pending.popleft()
    while pending:
        yield pending.popleft()


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
