"""Pools end with the block, or with the process, that uses them."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from a2s_repro.runtime.pools import processes, threads


@pytest.mark.parametrize("pool", [threads, processes])
def test_a_failing_block_drops_what_was_not_begun(pool):
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), pool(1) as workers:
        waiting = [workers.submit(time.sleep, 0.1) for _ in range(1000)]
        raise KeyboardInterrupt
    assert time.monotonic() - start < 50
    assert waiting[-1].cancelled()


def test_results_arrive():
    for pool in (threads, processes):
        with pool(2) as workers:
            assert list(workers.map(abs, range(-3, 0))) == [3, 2, 1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_die_with_a_killed_parent(number):
    script = """
import os, time
from a2s_repro.runtime.pools import processes
with processes(2) as workers:
    print(*{workers.submit(os.getpid).result() for _ in range(100)}, flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    children = [Path(f"/proc/{pid}") for pid in parent.stdout.readline().split()]
    assert children and all(child.exists() for child in children)
    parent.send_signal(number)
    assert parent.wait(30) == -number
    deadline = time.monotonic() + 30
    while any(child.exists() and "\nState:\tZ" not in (child / "status").read_text() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
