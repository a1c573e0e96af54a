"""Devices of the interpreter; where there is no nvcc these tests are skipped."""

import pytest

from tests.ptx import build, device

NO_NVCC = "needs nvcc, on PATH or in CUDA_HOME: the CUDA kernels are not executed"


@pytest.fixture(scope="session")
def kernels() -> device.Device:
    """The kernels of kernels.cu, which test the interpreter itself."""
    if build.nvcc() is None:
        pytest.skip(NO_NVCC)
    return device.Device([build.HERE / "kernels.cu"])


@pytest.fixture(scope="session")
def ptx() -> device.Device:
    """The project's operators, which are then also the backend "ptx"."""
    if build.nvcc() is None:
        pytest.skip(NO_NVCC)
    return device.operators()
