"""The interpreter as a device: the project's CUDA operators on CPU tensors.

`torch.ops.a2s_ptx` holds the operators. Their host code is the project's own, and each kernel that it launches is run
from its PTX before the launch returns.
"""

import ctypes
import functools
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from a2s_repro.ops import _native
from tests.ptx import arithmetic, build
from tests.ptx.counts import Counts
from tests.ptx.machine import Launch
from tests.ptx.memory import READABLE, WRITABLE, WRITTEN, Fault, GlobalMemory
from tests.ptx.parse import Module
from tests.ptx.program import Program, translate

LARGE = 1 << 30
"""Bytes from which memory is not touched without need."""
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


@dataclass
class Ran:
    """A launch that was run."""

    program: Program
    launch: Launch
    blocks: Sequence[int] | None
    """Those that were run; None: all."""


@dataclass
class Call:
    """An operator's call in progress."""

    memory: GlobalMemory
    allocated: list[Tensor] = field(default_factory=list)
    launches: list[Ran] = field(default_factory=list)
    fault: BaseException | None = None


class Allocations(TorchDispatchMode):
    """Registers what the host code allocates; uninitialised memory is filled with a pattern that is no result."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.name()
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(args)}
        for tensor in tensors_of(result):
            if name.startswith("aten::empty"):
                if 0 < tensor.untyped_storage().nbytes() < LARGE:
                    tensor.untyped_storage().fill_(0xFB)
                self.call.allocated.append(tensor)
                self.call.memory.allow(
                    tensor, f"result {len(self.call.allocated)} {describe(tensor)}", READABLE | WRITABLE
                )
            elif tensor.untyped_storage().data_ptr() not in given:  # a copy, as contiguous() may return
                self.call.memory.allow(tensor, f"{name} {describe(tensor)}", READABLE | WRITABLE | WRITTEN)
        return result


class Device:
    """A library and the PTX of its kernels, ready to be called.

    `counting`: launches are counted. `checked`: races are looked for. `sample`: chooses the blocks of a launch that are
    run (None: all of them). `last` is the latest call.
    """

    def __init__(self, library: Path, ptx: Sequence[Path]) -> None:
        self.modules = [Module(path.read_text()) for path in ptx]
        self.ptx = ptx
        self.programs: dict[str, Program] = {}
        self.library = ctypes.CDLL(str(library))
        arithmetic.use(self.library)
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_uint),
            ctypes.POINTER(ctypes.c_uint),
            ctypes.c_size_t,
            ctypes.c_size_t,
            ctypes.POINTER(ctypes.c_void_p),
        )
        self._callback = kind(self._launch)
        self.library.ptx_on_launch(self._callback)
        self.counting = False
        self.checked = True
        self.sample: Callable[[Launch], Sequence[int] | None] | None = None
        self.call: Call | None = None
        self.last: Call | None = None

    @contextmanager
    def counted(self, sample: Callable[[Launch], Sequence[int] | None]) -> Iterator[None]:
        """Within the block, launches are counted, on the blocks that `sample` chooses (None: all), and the order of
        accesses to shared memory and what threads write is not checked, which takes long."""
        before = self.counting, self.checked, self.sample
        self.counting, self.checked, self.sample = True, False, sample
        try:
            yield
        finally:
            self.counting, self.checked, self.sample = before

    def program(self, name: str) -> Program:
        if name not in self.programs:
            module = next((module for module in self.modules if name in module), None)
            if module is None:
                raise Fault(f"{name}: not in the PTX")
            self.programs[name] = translate(module[name])
        return self.programs[name]

    def _launch(self, name: bytes, grid: Any, block: Any, shared: int, requested: int, arguments: Any) -> int:
        try:
            program = self.program(name.decode())
            values = bytearray(program.kernel.parameter_bytes)
            for i, parameter in enumerate(program.kernel.parameters.values()):
                end = parameter.offset + parameter.size
                values[parameter.offset : end] = ctypes.string_at(arguments[i], parameter.size)
            self.call.memory.begin_launch()
            counts = Counts(program) if self.counting else None
            launch = Launch(
                program,
                tuple(grid[:3]),
                tuple(block[:3]),
                (shared, requested),
                bytes(values),
                self.call.memory,
                counts,
                self.checked,
            )
            blocks = self.sample(launch) if self.sample else None
            launch.run(blocks)
            if blocks is not None:
                self.call.memory.assume_written()
            self.call.launches.append(Ran(program, launch, blocks))
        except BaseException as error:
            self.call.fault = error
            return 1
        return 0

    @contextmanager
    def calling(self, inputs: Sequence[Tensor], results: Sequence[Tensor] = ()) -> Iterator[Call]:
        """Within the block, kernels may read `inputs`, and write `results` and what is allocated meanwhile.

        Raises:
            Fault: a kernel did what it must not.
        """
        call = self.call = self.last = Call(GlobalMemory(self.checked))
        for i, tensor in enumerate(inputs):
            call.memory.allow(tensor, f"argument {i} {describe(tensor)}", READABLE | WRITTEN)
        for i, tensor in enumerate(results):
            call.memory.allow(tensor, f"result {i} {describe(tensor)}", READABLE | WRITABLE)
        try:
            with Allocations(call):
                yield call
        except Exception as error:  # the host code's, about a launch that failed
            if call.fault is None:
                raise
            raise call.fault from error
        finally:
            self.call = None
        if call.fault is not None:
            raise call.fault

    def operator(self, name: str, *args: Any) -> Any:
        """Calls the CUDA implementation of `a2s_ptx::name`.

        Raises:
            Fault: a kernel did what it must not, or left a part of a result unwritten.
        """
        with self.calling(tensors_of(args)) as call:
            result = getattr(torch.ops.a2s_ptx, name).default.redispatch(CUDA, *args)
        if self.sample is None:
            for tensor in tensors_of(result):
                call.memory.check_complete(tensor, name)
        return result


def tensors_of(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in tensors_of(value)]
    return []


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """An argument for a host function that takes device memory."""
    return ctypes.c_void_p(tensor.data_ptr())


def describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))}"


def demangled(name: str) -> str:
    if shutil.which("c++filt") is None:
        return name
    return subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()


@functools.cache
def operators() -> Device:
    """The device of the project's operators, registered. Once in a process.

    `a2s_repro.ops.use_backend("ptx")` then runs the public functions and their gradients on it.
    """
    device = Device(*build.library_of_the_project())
    registered = torch.library.Library("a2s_ptx", "IMPL")
    for name in operator_names():
        registered.impl(name, functools.partial(device.operator, name), "CPU")
    device.registered = registered  # it ends with this object
    _native.add_backend("ptx", "a2s_ptx")
    return device


def operator_names() -> list[str]:
    """Those with CUDA code."""
    names = [n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("a2s_ptx::")]
    return [n for n in names if torch._C._dispatch_has_kernel_for_dispatch_key(f"a2s_ptx::{n}", "CUDA")]
