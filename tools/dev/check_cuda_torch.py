"""Checks that the built libraries load in a torch with CUDA and register all operators there. Needs no GPU.

    make cuda-torch-check
    PYTHONPATH=. build/cuda-torch/bin/python tools/dev/check_cuda_torch.py

The libraries are built with any torch from 2.10 on, also one for CPUs. This runs in the Python of another, whose torch
has CUDA. Exit status 1 where an operator lacks its CUDA kernel.
"""

import sys

import torch

from a2s_repro import ops
from a2s_repro.commands.run import run
from a2s_repro.errors import InputError
from a2s_repro.ops import _native


def has_kernel(name: str) -> bool:
    try:
        torch.library.get_kernel(f"a2s::{name}", "CUDA")
    except RuntimeError:
        return False
    return True


def main() -> int:
    if torch.version.cuda is None:
        raise InputError(f"torch {torch.__version__} of {sys.executable} has no CUDA: use a Python whose torch has.")
    if "cuda" not in _native.loaded_devices():
        raise InputError(f"the CUDA library was not loaded: {'; '.join(_native.problems.values())}.")
    names = [name for name in torch.ops.a2s if not name.startswith("winograd")]  # Winograd is for CPUs
    missing = [name for name in names if not has_kernel(name)]
    x = torch.randn(1, 3, 5, 5, requires_grad=True)
    ops.interp(x, (9, 9)).sum().backward()
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}: {len(names)} operators, without CUDA: {missing or 0}")
    return 1 if missing or x.grad is None else 0


if __name__ == "__main__":
    run(main)
