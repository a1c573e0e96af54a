"""Building, loading and starting: what works without native libraries, and the one sentence for each obstacle."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from a2s_repro.ops import _native

ROOT = Path(__file__).parent.parent


def run(*command: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | environment,
        cwd=environment.get("PWD", ROOT),
        capture_output=True,
        text=True,
    )


@pytest.fixture
def unbuilt(tmp_path: Path) -> Path:
    """A copy of the Python sources without native libraries."""
    for package in ("a2s_repro", "caffe_weights"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("lib", "__pycache__"))
    return tmp_path


PROGRAM = """
import torch
from a2s_repro import ops
from a2s_repro.models import ShareNet, Widths
net = ShareNet(3, (1, 0.5), widths=Widths().scaled(1 / 64))
prediction = net(torch.zeros(1, 3, 33, 33))
prediction.scores.sum().backward()
print(ops.segment(prediction.scores, (33, 33)).shape)
"""


def test_without_native_libraries_the_references_run_with_one_warning(unbuilt: Path) -> None:
    done = run(sys.executable, "-c", PROGRAM, PYTHONPATH=str(unbuilt), A2S_REQUIRE_NATIVE="0", PWD=str(unbuilt))
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 33, 33])" in done.stdout
    assert done.stderr.count("pure-torch operators") == 1 and "make setup" in done.stderr


def test_require_native_makes_that_an_import_error(unbuilt: Path) -> None:
    done = run(sys.executable, "-c", PROGRAM, PYTHONPATH=str(unbuilt), A2S_REQUIRE_NATIVE="1", PWD=str(unbuilt))
    assert done.returncode != 0
    assert "ImportError: a2s_repro: A2S_REQUIRE_NATIVE=1, but" in done.stderr


def test_a_library_that_does_not_load_is_named(unbuilt: Path) -> None:
    (unbuilt / "a2s_repro" / "lib").mkdir()
    (unbuilt / "a2s_repro" / "lib" / "liba2s_ops.so").write_bytes(b"not a library")
    place = {"PYTHONPATH": str(unbuilt), "PWD": str(unbuilt)}
    done = run(sys.executable, "-m", "a2s_repro.info", A2S_REQUIRE_NATIVE="0", **place)
    assert done.returncode == 0, done.stderr
    assert "liba2s_ops.so does not load" in done.stdout and "nothing" in done.stdout


def test_a_tool_run_before_installation_answers_make_setup(tmp_path: Path) -> None:
    for module in ("a2s_repro", "torch"):
        (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError(name={module!r})")
    done = run(sys.executable, "tools/convert_caffe.py", "--help", PYTHONPATH=str(tmp_path))
    assert done.returncode != 0 and "run `make setup`" in done.stderr and "Traceback" not in done.stderr


def configure(tmp_path: Path, *settings: str, **environment: str) -> subprocess.CompletedProcess:
    return run(
        *("cmake", "-S", ROOT, "-B", tmp_path / "build", "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"),
        *(f"-DA2S_OUTPUT_DIR={tmp_path / 'lib'}", *settings),
        **environment,
    )


def test_an_old_torch_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("__version__ = '2.9.1'\nclass version: cuda = None\n")
    done = configure(tmp_path, "-DA2S_CUDA=OFF", PYTHONPATH=str(tmp_path))
    assert done.returncode != 0 and "torch 2.9.1 is too old" in " ".join(done.stderr.split())


def test_a_wrong_architecture_is_refused(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    done = configure(tmp_path, "-DA2S_CUDA=ON", TORCH_CUDA_ARCH_LIST="Hopper")
    assert done.returncode != 0 and "'Hopper' is no architecture" in " ".join(done.stderr.split())


def test_no_compiler_is_said_in_one_sentence() -> None:
    done = run(sys.executable, "setup.py", "build_ext", CXX="no-such-compiler", A2S_REQUIRE_NATIVE="1")
    assert done.returncode != 0 and "no C++ compiler 'no-such-compiler'" in done.stderr


def test_info_tells_what_was_built_and_loaded() -> None:
    done = run(sys.executable, "-m", "a2s_repro.info")
    assert done.returncode == 0, done.stderr
    for fact in ("torch", "built cxx", "built cuda", "built torch abi target", "loaded native operators for"):
        assert fact in done.stdout
    assert ("cpu" in _native.loaded_devices()) == (_native.LIBRARY_DIR / "liba2s_ops.so").exists()
