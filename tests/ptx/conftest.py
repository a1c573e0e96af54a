"""Devices of the interpreter; where kernels are not compiled these tests are skipped."""

import os
from collections.abc import Iterator

import pytest

from a2s_repro import ops
from tests.backends import Backend
from tests.ptx import build
from tests.ptx.device import Device, operators


def skip_without_kernels() -> None:
    if missing := build.missing():
        end = pytest.fail if os.environ.get("A2S_CUDA") == "ON" else pytest.skip
        end(f"the CUDA kernels are not executed: {missing}")


@pytest.fixture(scope="session")
def kernels() -> Device:
    """The kernels of kernels.cu, which test the interpreter itself."""
    skip_without_kernels()
    return Device(*build.library_of(build.HERE / "kernels.cu"))


@pytest.fixture(scope="session")
def project() -> Device:
    """The project's operators."""
    skip_without_kernels()
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
