"""Devices of the interpreter; where there is no nvcc these tests are skipped."""

from collections.abc import Iterator

import pytest

from a2s_repro import ops
from tests.backends import Backend
from tests.ptx import build
from tests.ptx.device import Device, operators

NO_NVCC = "needs nvcc, on PATH or in CUDA_HOME: the CUDA kernels are not executed"


@pytest.fixture(scope="session")
def kernels() -> Device:
    """The kernels of kernels.cu, which test the interpreter itself."""
    if build.nvcc() is None:
        pytest.skip(NO_NVCC)
    return Device([build.HERE / "kernels.cu"])


@pytest.fixture(scope="session")
def project() -> Device:
    """The project's operators."""
    if build.nvcc() is None:
        pytest.skip(NO_NVCC)
    return operators()


@pytest.fixture
def ptx(project: Device) -> Iterator[Device]:
    """Runs the test with the operators in the interpreter."""
    with ops.use_backend("ptx"):
        yield project


@pytest.fixture
def backend(ptx: Device) -> Backend:
    """Replaces the fixture of the operators' own tests, which makes them tests of the kernels."""
    return Backend("ptx", "cpu")
