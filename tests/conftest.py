"""Shared fixtures: golden recordings, and the backends of the operators."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from a2s_repro import ops
from tests.paths import GOLDEN

# xdist workers share the machine's cores; their subprocesses inherit the setting.
THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))
os.environ["OMP_NUM_THREADS"] = str(THREADS)
torch.set_num_threads(THREADS)

BACKENDS = [
    pytest.param(("reference", "cpu"), id="reference"),
    pytest.param(("native", "cpu"), id="native-cpu"),
]
if torch.cuda.is_available():
    BACKENDS.append(pytest.param(("native", "cuda"), id="native-cuda", marks=pytest.mark.cuda))


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per backend of the operators; yields the device for tensors."""
    backend, device = request.param
    with ops.use_backend(backend):
        yield device


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of recordings from the authors' Caffe; its INDEX.md describes them."""
    return GOLDEN


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Runs the test on one thread, because the rounding of convolutions depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
