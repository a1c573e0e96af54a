"""Memory that a process keeps, and memory that it lacks."""

import errno
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch

from a2s_repro.errors import InputError
from a2s_repro.runtime.devices import fitting_in_memory

RETURNED = """
import os
import torch
from a2s_repro.runtime.memory import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def returned():
    tensor = torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    before = resident()
    del tensor
    return before - resident()

without = returned()
keep_freed_memory()
print(without, returned())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_stays_with_the_process():
    """Of a tensor of 64 MB, resident bytes that the system has back once it is freed: all, or next to none."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment["THP_MEM_ALLOC_ENABLE"] = "1"
    run = subprocess.run([sys.executable, "-c", RETURNED], env=environment, capture_output=True, text=True, check=True)
    without, kept = map(int, run.stdout.split())
    assert without > 60 << 20
    assert kept < 4 << 20


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "act",
    [
        lambda: torch.empty(2**50),  # the CPU's allocator
        lambda: np.empty(2**50),
        lambda: fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
        lambda: fail(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
        lambda: fail(OSError(errno.ENOMEM, "Cannot allocate memory")),  # a process that cannot be forked
    ],
    ids=["torch", "numpy", "CUDA", "cuBLAS", "fork"],
)
def test_a_lack_of_memory_is_one_sentence_and_frees_what_was_held(act):
    class Maps:
        pass

    def block():
        maps = Maps()
        held.append(weakref.ref(maps))
        act()

    held = []
    with pytest.raises(InputError) as caught, fitting_in_memory("a batch of 30", "lower --batch-size"):
        block()
    assert str(caught.value) == "a batch of 30 needs more memory than there is: lower --batch-size."
    assert held[0]() is None


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), FileNotFoundError("x"), KeyboardInterrupt()])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, fitting_in_memory("a batch", "lower it"):
        raise error
    assert caught.value is error
