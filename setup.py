"""Packages the native libraries, which CMake builds; CMakeLists.txt lists all their sources.

Environment variables:
    A2S_CUDA, A2S_SANITIZE: settings of CMakeLists.txt.
    A2S_REQUIRE_NATIVE=1: fail where there is no C++ compiler, instead of leaving out the libraries.
    A2S_PREBUILT: a folder with libraries of these sources, which are packaged instead of being built again.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
COMPILERS = ("c++", "g++", "clang++")


class CleanBuild(build):
    """Starts from an empty folder, so that a wheel holds no module that was moved or deleted since the last build."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Runs CMake with Ninja; libraries go to a2s_repro/lib.

    Only where there is no C++ compiler at all, the package is built without them. It then uses the pure-torch
    operators, and its first import says so.
    """

    def run(self) -> None:
        in_place = self.inplace or self.editable_mode
        output = (ROOT if in_place else Path(self.build_lib).resolve()) / "a2s_repro" / "lib"
        if prebuilt := os.environ.get("A2S_PREBUILT"):
            copy_libraries(Path(prebuilt), output)
        elif "CXX" in os.environ or any(map(shutil.which, COMPILERS)):
            run_cmake(ROOT / "build" if in_place else Path(self.build_temp).resolve(), output)
        else:
            leave_out(output)

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_outputs(self) -> list[str]:
        return []


class NativeWheel(bdist_wheel):
    """Tags a wheel with the platform alone.

    The operators' libraries are built against torch's stable ABI and know nothing of Python. The dense CRF, a module
    for one version of Python, is optional.
    """

    def get_tag(self) -> tuple[str, str, str]:
        *_, platform = super().get_tag()
        native = any(Path(self.bdist_dir).rglob("*.so"))
        return "py3", "none", platform if native else "any"


def run_cmake(folder: Path, output: Path) -> None:
    """Builds in `folder`; exits with the reason if that fails."""
    compiler = shlex.split(os.environ.get("CXX", COMPILERS[0]))[0]
    if "CXX" in os.environ and shutil.which(compiler) is None:
        fail(f"CXX names no C++ compiler: there is no '{compiler}'.")
    settings = [
        f"-DCMAKE_MAKE_PROGRAM={program('ninja')}",  # the recorded one may be that of a past isolated build
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DA2S_SITE={sysconfig.get_path('platlib')}",
        f"-DA2S_OUTPUT_DIR={output}",
        f"-DA2S_CUDA={os.environ.get('A2S_CUDA', 'AUTO')}",
        f"-DA2S_SANITIZE={os.environ.get('A2S_SANITIZE', '')}",
    ]
    fresh = ["--fresh"] if is_of_another_checkout(folder) else []
    cmake = program("cmake")
    for command in (
        [cmake, *fresh, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *settings],
        [cmake, "--build", str(folder)],
    ):
        if subprocess.run(command).returncode != 0:
            fail(f"the native libraries could not be built: `{' '.join(command[:2])} ...` failed; see its output.")


def is_of_another_checkout(folder: Path) -> bool:
    """Whether CMake's cache in `folder` records another source or build folder, as after copying a checkout."""
    try:
        cache = (folder / "CMakeCache.txt").read_text()
    except FileNotFoundError:
        return False
    recorded = dict(line.split(":INTERNAL=", 1) for line in cache.splitlines() if ":INTERNAL=" in line)
    return recorded.get("CMAKE_HOME_DIRECTORY") != str(ROOT) or recorded.get("CMAKE_CACHEFILE_DIR") != str(folder)


def program(name: str) -> str:
    """The path of a build tool, from the folder of this Python or from PATH."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    return found or fail(f"there is no {name}: install it (pip install {name}).")


def copy_libraries(folder: Path, output: Path) -> None:
    if not (folder / "liba2s_ops.so").exists():
        fail(f"A2S_PREBUILT={folder} holds no liba2s_ops.so: build the libraries first (make setup).")
    shutil.copytree(folder, output, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)


def leave_out(output: Path) -> None:
    """Records why there are no libraries, for `a2s info` and the warning of the first import."""
    reason = f"there was no C++ compiler ({', '.join(COMPILERS)}, or CXX) when a2s_repro was installed"
    if os.environ.get("A2S_REQUIRE_NATIVE") == "1":
        fail(f"A2S_REQUIRE_NATIVE=1, but {reason}: install one (Debian: apt install g++).")
    print(f"a2s_repro: no native libraries, because {reason}.", file=sys.stderr)
    if not (output / "liba2s_ops.so").exists():
        output.mkdir(parents=True, exist_ok=True)
        (output / "build.json").write_text(json.dumps({"operators": f"off: {reason}"}))


def fail(reason: str) -> None:
    sys.exit(f"a2s_repro: {reason}")


setup(
    ext_modules=[Extension("a2s_repro.lib", sources=[])],
    cmdclass={"build": CleanBuild, "build_ext": CMakeBuild, "bdist_wheel": NativeWheel},
)
