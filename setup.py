"""Builds the native libraries with CMake, whose CMakeLists.txt lists all sources, and packages them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Runs CMake with Ninja; libraries go to a2s_repro/lib.

    Without a compiler or a suitable torch, a message is printed and the package is installed without native libraries;
    it then uses the pure-torch operators. With A2S_REQUIRE_NATIVE=1 the build fails instead.
    """

    def run(self) -> None:
        output = (ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()) / "a2s_repro" / "lib"
        try:
            self.build_libraries(output)
        except RuntimeError as problem:
            if os.environ.get("A2S_REQUIRE_NATIVE") == "1":
                sys.exit(f"a2s_repro: {problem}")
            print(f"a2s_repro: {problem} Installing without native libraries.", file=sys.stderr)

    def build_libraries(self, output: Path) -> None:
        try:
            import torch
        except ImportError:
            raise RuntimeError(
                "torch is not importable during the build: install torch >= 2.10 and use "
                "`pip install --no-build-isolation -e .`."
            ) from None
        if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
            raise RuntimeError(f"torch {torch.__version__} is too old: the native libraries need torch >= 2.10.")
        compiler = os.environ.get("CXX", "c++")
        if shutil.which(compiler) is None:
            raise RuntimeError(f"no C++ compiler '{compiler}': install one (Debian: apt install g++) or set CXX.")
        cmake = shutil.which("cmake")
        if cmake is None:
            raise RuntimeError("no cmake: install it (pip install cmake).")
        settings = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DA2S_OUTPUT_DIR={output}",
            f"-DA2S_CUDA={os.environ.get('A2S_CUDA', 'AUTO')}",
            f"-DA2S_SANITIZE={os.environ.get('A2S_SANITIZE', '')}",
        ]
        build = ROOT / "build"
        for command in (
            [cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *settings],
            [cmake, "--build", str(build)],
        ):
            if subprocess.run(command).returncode != 0:
                raise RuntimeError(f"`{' '.join(command[:2])} ...` failed: see its output above.")

    def get_source_files(self) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_outputs(self) -> list[str]:
        return []


setup(ext_modules=[Extension("a2s_repro.lib", sources=[])], cmdclass={"build_ext": CMakeBuild})
