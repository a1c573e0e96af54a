"""The project's CUDA sources compiled for the interpreter: host code as a library, device code as PTX.

Nothing is changed in the sources. The operators register in the namespace `a2s_ptx` instead of `a2s`, because the
macro `a2s` is defined so; the CUDA runtime is native.cpp; ptxas is not needed. What was compiled is kept under
build/ptx, by a hash of all that went into it.
"""

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / "build" / "ptx"
ARCHITECTURE = "90"
TORCH = Path(torch.__file__).parent
FLAGS = ["-O3", "-DNDEBUG", "-std=c++17", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-Da2s=a2s_ptx"]
FLAGS += ["-isystem", str(TORCH / "include"), "-diag-suppress=20012"]
FLAGS += ["-Xcompiler=-fPIC,-ffp-contract=off,-fvisibility=hidden"]


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


def headers_of(source: Path) -> list[Path]:
    """Headers that a source includes by a quoted path, and theirs."""
    found: list[Path] = []
    waiting = [source]
    while waiting:
        file = waiting.pop()
        for line in file.read_text().splitlines():
            if line.startswith('#include "'):
                header = (file.parent / line.split('"')[1]).resolve()
                if header.exists() and header not in found:
                    found.append(header)
                    waiting.append(header)
    return sorted(found)


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


def compiled(source: Path) -> tuple[Path, Path]:
    """Object file and PTX of a CUDA source."""
    texts = [(f.name, f.read_bytes()) for f in [source, *headers_of(source)]]
    name = f"{source.parent.name}-{source.stem}-{digest(toolchain(), FLAGS, texts)}"
    with made_once(name) as (folder, work):
        if work:
            kept = work / "object.o", work / f"{source.stem}.ptx"
            command = ["-c", "-gencode", f"arch=compute_{ARCHITECTURE},code=compute_{ARCHITECTURE}", *FLAGS]
            run([nvcc(), *command, "--keep", "--keep-dir", str(work), "-o", str(kept[0]), str(source)])
            for file in set(work.iterdir()) - set(kept):
                file.unlink()
    return folder / "object.o", folder / f"{source.stem}.ptx"


def cuda_sources(*operators: str) -> list[Path]:
    """The project's CUDA sources, or those of the folders that hold one of the operators."""
    listed = [ROOT / name for name in re.findall(r"csrc/\S+\.cu\b", (ROOT / "CMakeLists.txt").read_text())]
    folders = {s.parent for s in listed if any(f'"{name}"' in s.read_text() for name in operators)}
    return [s for s in listed if not operators or s.parent in folders]


def build(sources: list[Path], schemas: Path | None = None) -> tuple[Path, list[Path]]:
    """The library of `sources` (and the host file that defines the operators' schemas), and the PTX of each."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(compiled, sources))
    host = [HERE / "native.cpp", *([schemas] if schemas else [])]
    objects = [str(object) for object, _ in made]
    with made_once(f"library-{digest(toolchain(), FLAGS, objects, [f.read_bytes() for f in host])}") as (folder, work):
        if work:
            link = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", f"-Xlinker=-Bsymbolic,--no-undefined,-rpath,{TORCH / 'lib'}"]
            output = ["-o", str(work / "liba2s_ptx.so")]
            run([nvcc(), "-shared", "-cudart=none", *FLAGS, *map(str, host), *objects, *link, *output])
    return folder / "liba2s_ptx.so", [ptx for _, ptx in made]
