"""Memory retained by a process."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from a2s_repro.runtime.devices import keep_freed_memory

def faults(times):
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start

faults(2)
before = faults(5)
keep_freed_memory()
faults(2)
print(before, faults(5))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_is_kept_for_the_next_tensor():
    """A new tensor of 64 MB causes 16384 page faults, or 32 with 2 MB pages as in the tools; retained memory none."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment["THP_MEM_ALLOC_ENABLE"] = "1"
    run = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    assert before >= 5 * 32
    assert after < before / 10
