"""Building and loading: operation without native libraries, and the errors for failed builds."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import a2s_repro
from a2s_repro import info
from a2s_repro.bench.provenance import sources_hash
from a2s_repro.ops import _native
from tests.paths import ROOT
from tests.processes import run_tool


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


def test_without_native_libraries_references_run_with_one_warning(unbuilt: Path) -> None:
    done = run(sys.executable, "-c", PROGRAM, PYTHONPATH=str(unbuilt), A2S_REQUIRE_NATIVE="0", PWD=str(unbuilt))
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 33, 33])" in done.stdout
    assert done.stderr.count("pure-torch operators") == 1 and "make setup" in done.stderr


def test_require_native_makes_missing_libraries_an_import_error(unbuilt: Path) -> None:
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


@pytest.mark.long
def test_a_wrong_architecture_is_refused(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    done = configure(tmp_path, "-DA2S_CUDA=ON", TORCH_CUDA_ARCH_LIST="Hopper")
    assert done.returncode != 0 and "'Hopper' is no architecture" in " ".join(done.stderr.split())


@pytest.mark.long
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_an_nvcc_of_another_cuda_than_torchs_is_named(tmp_path: Path) -> None:
    """By AUTO it leaves out the CUDA library, and the reason is on record; ON is refused."""
    (tmp_path / "torch.py").write_text("__version__ = '2.13.0'\nclass version: cuda = '99.1'\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtorch_cpu.so").touch()
    sentence = "does not match torch, which was built with CUDA 99.1: set CUDA_HOME to a toolkit of CUDA 99"
    done = configure(tmp_path, "-DA2S_CUDA=AUTO", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert sentence in json.loads((tmp_path / "lib" / "build.json").read_text())["cuda"]
    done = configure(tmp_path, "-DA2S_CUDA=ON", PYTHONPATH=str(tmp_path))
    assert done.returncode != 0 and sentence in " ".join(done.stderr.split())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that `setup.py` reads before anything is compiled."""
    folder = tmp_path / "checkout"
    (folder / "a2s_repro").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "CMakeLists.txt", "a2s_repro/__init__.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_a_failed_build_ends_with_the_compilers_words(checkout: Path) -> None:
    """Also in a copied checkout, whose `build` CMake would refuse."""
    (checkout / "build").mkdir()
    (checkout / "build" / "CMakeCache.txt").write_text("CMAKE_HOME_DIRECTORY:INTERNAL=/elsewhere\n")
    broken = checkout / "broken-compiler"
    broken.write_text("#!/bin/sh\necho the compiler is out of order >&2\nexit 1\n")
    broken.chmod(0o755)
    done = run(sys.executable, "setup.py", "build_ext", "--inplace", CXX=str(broken), A2S_CUDA="OFF", PWD=str(checkout))
    assert done.returncode != 0 and "the compiler is out of order" in done.stderr
    assert "a2s_repro: the native libraries could not be built" in done.stderr.splitlines()[-1]


def test_a_compiler_that_is_named_must_be_there(checkout: Path) -> None:
    done = run(sys.executable, "setup.py", "build_ext", CXX="no-such-compiler", PWD=str(checkout))
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == "a2s_repro: CXX names no C++ compiler: there is no 'no-such-compiler'."


def test_only_without_any_compiler_the_libraries_are_left_out(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel then fits every platform, and the first import gives the reason."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    command = [sys.executable, "setup.py", "bdist_wheel"]
    refused = subprocess.run(command, env=os.environ | {"A2S_REQUIRE_NATIVE": "1"}, cwd=checkout, capture_output=True)
    assert refused.returncode != 0 and b"there was no C++ compiler" in refused.stderr
    monkeypatch.setenv("A2S_REQUIRE_NATIVE", "0")
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    (wheel,) = (checkout / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")

    shutil.unpack_archive(wheel, checkout / "installed", "zip")
    monkeypatch.setattr(_native, "LIBRARY_DIR", checkout / "installed" / "a2s_repro" / "lib")
    monkeypatch.setattr(_native, "problems", {})
    with pytest.warns(UserWarning, match=r"because there was no C\+\+ compiler .* when a2s_repro was installed"):
        _native.load()


def test_a_build_requires_a_torch_only_where_none_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip hides the installed one in its build environment, but not the folder that it lies in."""
    required_torch = runpy.run_path(str(ROOT / "build_backend.py"))["required_torch"]
    with monkeypatch.context() as patched:
        patched.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        assert required_torch() == ["torch>=2.10"]
        for version, required in (("2.9.1", ["torch>=2.10"]), ("2.10.0+cpu", []), ("3.0.0", [])):
            (tmp_path / "torch-1.dist-info").mkdir(exist_ok=True)
            (tmp_path / "torch-1.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {version}\n")
            assert required_torch() == required

    (tmp_path / "torch.py").write_text("__version__ = '2.9.1'\nclass version: cuda = None\n")
    venv.create(tmp_path / "empty", symlinks=True)
    python = f"-DPython_EXECUTABLE={tmp_path}/empty/bin/python"
    done = configure(tmp_path, "-DA2S_CUDA=OFF", f"-DA2S_SITE={tmp_path}", python)
    assert done.returncode != 0 and "torch 2.9.1 is too old" in " ".join(done.stderr.split())


def test_the_version_is_written_once() -> None:
    """In the package; the citation file, which cannot read it, agrees."""
    assert "\nversion" not in (ROOT / "pyproject.toml").read_text().partition("[project]")[2].partition("\n[")[0]
    assert f"\nversion: {a2s_repro.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_info_lists_built_and_loaded_libraries(capsys: pytest.CaptureFixture) -> None:
    info.main()
    said = capsys.readouterr().out
    for fact in ("torch", "built cxx", "built cuda", "built torch abi target", "loaded native operators for"):
        assert fact in said
    assert ("cpu" in _native.loaded_devices()) == (_native.LIBRARY_DIR / "liba2s_ops.so").exists()


KERNELS = """
__global__ void in_registers(float* x) { x[threadIdx.x] *= 2; }
__global__ void on_the_stack(float* x, int n) {
  float local[64];
  for (int i = 0; i < 64; ++i) local[i] = x[i];
  for (int i = 0; i < n; ++i) local[i * n & 63] += x[i];
  x[n] = local[n & 63];
}
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_a_kernel_with_a_stack_frame_is_named(tmp_path: Path) -> None:
    (tmp_path / "kernels.cu").write_text(KERNELS)
    built = run(
        *("nvcc", "-cubin", "-arch=sm_80", "-Xptxas=-v"), tmp_path / "kernels.cu", "-o", tmp_path / "kernels.cubin"
    )
    assert built.returncode == 0, built.stderr
    report = tmp_path / "report.txt"
    report.write_text(built.stdout + built.stderr)
    done = run(sys.executable, "tools/dev/check_ptxas.py", report, "--arch", "sm_80")
    assert done.returncode == 1
    assert "256 bytes stack frame" in done.stdout and "on_the_stack" in done.stdout
    assert "in_registers" not in done.stdout and "sm_80: 2 kernels" in done.stdout
    done = run(sys.executable, "tools/dev/check_ptxas.py", report, "--arch", "sm_80", "sm_90")
    assert done.returncode == 2 and "no kernel for sm_90" in done.stderr


def test_the_sources_hash_changes_with_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("one")
    hashes = [sources_hash(tmp_path)]
    (tmp_path / "a.h").write_text("two")
    hashes.append(sources_hash(tmp_path))
    (tmp_path / "a.h").rename(tmp_path / "b.h")
    hashes.append(sources_hash(tmp_path))
    assert len(set(hashes)) == 3 and all(len(value) == 16 for value in hashes)


def test_the_gpu_report_lists_its_steps_and_needs_a_gpu() -> None:
    listed = run_tool("dev/gpu_report", "--dry-run")
    assert listed.returncode == 0, listed.stderr
    assert [line.split(" at most")[0].strip() for line in listed.stdout.splitlines() if " at most" in line] == [
        *("build", "tests", "ten operators", "whole net", "memcheck", "racecheck", "initcheck"),
        *("all operators", "ncu", "all"),
    ]
    assert int(listed.stdout.split()[-2]) <= 540
    refused = run_tool("dev/gpu_report", environment=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert refused.returncode == 2 and "sees no GPU: run `make gpu-report" in refused.stderr
