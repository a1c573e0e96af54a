"""Holds a CUDA build to kernels that keep everything in registers: no spills, no stack, for every architecture.

    python tools/dev/check_ptxas.py build/CMakeFiles/a2s_ops_cuda.dir/Unity/*.ptxas --arch sm_80 sm_90

Reads what `nvcc -Xptxas=-v` said of each object, which the build keeps beside it. Exit status 1 and the kernel's name
where one spills or has a stack frame.
"""

import argparse
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from a2s_repro.commands.run import run
from a2s_repro.errors import InputError

KERNEL = re.compile(r"Compiling entry function '(?P<kernel>\S+)' for '(?P<arch>\w+)'")
FUNCTION = re.compile(r"Function properties for (?P<function>\S+)")
MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (?P<registers>\d+) registers")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, help="what nvcc -Xptxas=-v printed")
    parser.add_argument("--arch", nargs="+", default=["sm_80", "sm_90"], help="architectures that must be there")
    options = parser.parse_args()

    kernels, registers, faults = Counter(), Counter(), []
    arch = kernel = function = None
    for line in "\n".join(report.read_text() for report in options.reports).splitlines():
        if found := KERNEL.search(line):
            kernel, arch = found["kernel"], found["arch"]
        elif found := FUNCTION.search(line):
            function = found["function"]
        elif found := MEMORY.search(line):
            kernels[arch] += function == kernel
            if found.groups() != ("0", "0", "0"):
                faults.append(f"{arch}: {found[0]}: {demangled(function)}")
        elif found := REGISTERS.search(line):
            registers[arch] = max(registers[arch], int(found["registers"]))

    if missing := [arch for arch in options.arch if not kernels[arch]]:
        raise InputError(f"no kernel for {', '.join(missing)} in the reports: build for it (TORCH_CUDA_ARCH_LIST).")
    for fault in faults:
        print(fault)
    for arch, count in sorted(kernels.items()):
        print(f"{arch}: {count} kernels, at most {registers[arch]} registers")
    print(f"functions that spill or have a stack frame: {len(faults)}")
    return 1 if faults else 0


def demangled(function: str) -> str:
    if shutil.which("c++filt") is None:
        return function
    return subprocess.run(["c++filt", function], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    run(main)
