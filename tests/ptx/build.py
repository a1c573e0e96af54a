"""The project's CUDA library linked for the interpreter: host code as a library, device code as PTX.

The objects are those of the library that the package loads, in build/, brought up to date first. Only the CUDA runtime
is another one: native.cpp, which also has the operators registered in the namespace `a2s_ptx` instead of `a2s`. Linked
and compiled files are kept under build/ptx, by a hash of all that went into them.
"""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / "build" / "ptx"
CMAKE = ROOT / "build"
OBJECTS = CMAKE / "CMakeFiles" / "a2s_ops_cuda.dir"
SCHEMAS = CMAKE / "CMakeFiles" / "a2s_ops.dir" / "csrc" / "library.cpp.o"
ARCHITECTURE = "90"
TORCH = Path(torch.__file__).parent
FLAGS = ["-O3", "-std=c++17", "-isystem", str(TORCH / "include"), "-Xcompiler=-fPIC,-ffp-contract=off"]


def missing() -> str | None:
    """What a checkout lacks for running the kernels, or None."""
    if nvcc() is None:
        return "nvcc was not found: put it on PATH or set CUDA_HOME"
    if not OBJECTS.exists() or "a2s_ops_cuda" not in (CMAKE / "build.ninja").read_text():  # objects can be left over
        return "build/ has no CUDA library: run `make setup A2S_CUDA=ON`"
    return None


def nvcc() -> str | None:
    """Path of nvcc, or None where there is none."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def run(command: list[str]) -> tuple[str, float]:
    """What a compiler wrote to stderr, and the seconds of CPU that it took."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        text = errors.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{text[-4000:]}")
    return text, usage.ru_utime + usage.ru_stime


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@functools.cache
def toolchain() -> str:
    version = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return version + torch.__version__


@contextmanager
def made_once(name: str) -> Iterator[tuple[Path, Path | None]]:
    """Folder `name` of the cache and, unless it is there, a folder that becomes it if the block does not raise."""
    CACHE.mkdir(parents=True, exist_ok=True)
    folder, work = CACHE / name, CACHE / f"{name}.part"
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            yield folder, None
            return
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield folder, work
        work.rename(folder)


def library_of_the_project() -> tuple[Path, list[Path]]:
    """The operators on native.cpp's runtime, and the PTX of their kernels."""
    with (CMAKE / "ptx.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        targets = [str(SCHEMAS.relative_to(CMAKE)), "a2s_ops_cuda"]
        run([shutil.which("cmake", path=search), "--build", str(CMAKE), "--target", *targets])
    together = OBJECTS / "Unity"  # sources compiled together; CMake before 3.31 compiles each by itself
    objects = sorted((together if together.exists() else OBJECTS).rglob("*.cu.o"))
    return linked([SCHEMAS, *objects]), [ptx_of(Path(f"{object}.ptx")) for object in objects]


def library_of(source: Path) -> tuple[Path, list[Path]]:
    """A CUDA source on native.cpp's runtime, and its PTX."""
    with made_once(f"{source.stem}-{digest(toolchain(), FLAGS, source.read_bytes())}") as (folder, work):
        if work:
            target = ["-gencode", f"arch=compute_{ARCHITECTURE},code=compute_{ARCHITECTURE}"]
            keep = ["--keep", "--keep-dir", str(work)]
            run([nvcc(), "-c", *target, *FLAGS, *keep, "-o", str(work / "object.o"), str(source)])
    return linked([folder / "object.o"]), [ptx_of(folder)]


def ptx_of(folder: Path) -> Path:
    """The PTX among the files that nvcc left."""
    (path,) = folder.glob("*.ptx")
    return path


def linked(objects: list[Path]) -> Path:
    """A library of objects and native.cpp."""
    contents = [path.read_bytes() for path in [HERE / "native.cpp", *objects]]
    with made_once(f"library-{digest(toolchain(), FLAGS, contents)}") as (folder, work):
        if work:
            link = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", f"-Xlinker=-Bsymbolic,--no-undefined,-rpath,{TORCH / 'lib'}"]
            output = ["-o", str(work / "liba2s_ptx.so")]
            sources = [str(path) for path in (HERE / "native.cpp", *objects)]
            run([nvcc(), "-shared", "-cudart=none", *FLAGS, *sources, *link, *output])
    return folder / "liba2s_ptx.so"
