"""Shared fixtures: golden recordings, and the backends of the operators."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from a2s_repro import ops
from tests.backends import BACKENDS, Backend
from tests.paths import GOLDEN

# xdist workers share the machine's cores; their subprocesses inherit the setting.
CORES = os.cpu_count() or 1
SHARE = CORES // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
THREADS = max(1, min(SHARE, int(os.environ.get("OMP_NUM_THREADS", CORES))))
os.environ["OMP_NUM_THREADS"] = str(THREADS)
torch.set_num_threads(THREADS)

LONGEST = ("test_golden_nets.py", "test_operators.py", "test_distributed.py", "test_survival.py", "test_export.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores, because some tests wait for processes of their own."""
    return CORES + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(
    params=[pytest.param(b, id=str(b), marks=[pytest.mark.cuda] if b.device == "cuda" else []) for b in BACKENDS]
)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Runs the test once on each backend of the operators."""
    with ops.use_backend(request.param.name):
        yield request.param


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Temporary files of tests, and of the programs that they run, are in pytest's folder, which pytest removes."""
    tempfile.tempdir = os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("t"))  # sockets' paths must be short


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of recordings from the authors' Caffe; its INDEX.md describes them."""
    return GOLDEN


def _on_one_thread() -> Iterator[None]:
    """Runs the test on one thread, because the rounding of convolutions depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


one_thread = pytest.fixture(_on_one_thread, name="one_thread")
one_thread_throughout = pytest.fixture(_on_one_thread, scope="module", name="one_thread_throughout")
"""The same for all tests of a module and its fixtures, which a thin net runs faster, too."""
