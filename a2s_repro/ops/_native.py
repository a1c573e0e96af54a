"""Loads the native libraries, chooses between them and the pure-torch references, and registers operators with torch.

An operator exists in two equivalent forms: native (`torch.ops.a2s`) and the pure-torch reference beside its public
function.
"""

import functools
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from a2s_repro.ops import _memory
from a2s_repro.ops._transforms import Calls, Rule, no_double_backward

LIBRARY_DIR = Path(__file__).resolve().parent.parent / "lib"
NAMESPACES = {"native": "a2s"}
"""torch namespace of each backend but `reference`."""
REMEDY = "run `make setup` in a checkout, or `pip install --force-reinstall --no-deps --no-cache-dir` of the sources"
"""Builds the native libraries."""
MAX_SCALES = 4


class _Traced(threading.local):
    """The backend of a thread as torch.compile sees it: its guards know no context variables."""

    def __init__(self) -> None:
        self.backend = "native"


_backend: ContextVar[str] = ContextVar("a2s_repro.ops backend", default="native")
_traced = _Traced()
_devices: frozenset[str] = frozenset()
problems: dict[str, str] = {}
_registrations: list[Callable[[str], None]] = []
_rules: dict[str, dict[str, Rule]] = {}
"""Namespace -> operator -> rule."""


def _load(name: str) -> bool:
    path = LIBRARY_DIR / f"lib{name}.so"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        problems[name] = load_problem(path, error)
        return False
    return True


def load_problem(path: Path, error: OSError) -> str:
    """The reason why the library at `path` does not load."""
    left_out = build_facts().get("operators", "").removeprefix("off: ") or f"{path} was not built"
    return f"{path} does not load: {error}" if path.exists() else left_out


def build_facts() -> dict[str, str]:
    """Settings and results of the native build, as recorded beside the libraries; empty if nothing was built."""
    try:
        return json.loads((LIBRARY_DIR / "build.json").read_text())
    except FileNotFoundError:
        return {}


def load() -> None:
    """Loads the CPU library and, where torch has CUDA, the CUDA library, if they were built.

    Raises:
        ImportError: `A2S_REQUIRE_NATIVE=1` is set and the CPU library is missing or does not load.
    """
    global _devices
    if _load("a2s_ops"):
        _devices = frozenset({"cpu", "meta"})
        if torch.version.cuda is not None and _load("a2s_ops_cuda"):
            _devices |= {"cuda"}
        return
    remedy = f"{problems['a2s_ops']}: {REMEDY}"
    if os.environ.get("A2S_REQUIRE_NATIVE") == "1":
        raise ImportError(f"a2s_repro: A2S_REQUIRE_NATIVE=1, but {remedy}.")
    warnings.warn(f"a2s_repro runs on its slower pure-torch operators, because {remedy}.", stacklevel=2)


def loaded_devices() -> frozenset[str]:
    """Device types with native operators in this process."""
    return _devices


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Selects the form of the operators within the block, for this thread (or asyncio task) alone.

    `native` is the default, `reference` is pure torch (for ONNX export, debugging and comparison). Raises ValueError
    for another name.
    """
    if name not in ("reference", *NAMESPACES):
        raise ValueError(f"use_backend: unknown backend {name!r}; known are {', '.join(['reference', *NAMESPACES])}.")
    token, before = _backend.set(name), _traced.backend
    _traced.backend = name
    try:
        yield
    finally:
        _backend.reset(token)
        _traced.backend = before


def backend() -> str:
    """The backend in force for this thread or asyncio task."""
    return _traced.backend if torch.compiler.is_compiling() else _backend.get()


def is_reference() -> bool:
    """Whether `use_backend("reference")` is in force."""
    return backend() == "reference"


def namespace_for(tensor: Tensor, scales: int = 1) -> str | None:
    """The torch.ops namespace for `tensor` and a merge of `scales` maps; None selects the reference."""
    name = backend()
    if name == "reference" or tensor.device.type not in _devices or scales > MAX_SCALES:
        return None
    if name == "native" and tensor.device.type == "cpu" and tensor.dtype == torch.float16:
        return None  # no CPU net uses float16, and every dtype of the CPU loops takes a third of a minute to compile
    return NAMESPACES[name]


def operators(tensor: Tensor, scales: int = 1) -> Any | None:
    """The operators of `namespace_for`, seen by torch's transforms; None selects the reference."""
    name = namespace_for(tensor, scales)
    if name is None:
        return None
    return getattr(torch.ops, name) if torch.compiler.is_compiling() else Calls(_rules[name])


def add_backend(name: str, namespace: str) -> None:
    """Makes the operators of a torch namespace, which has the same schemas as `a2s`, a backend: for tests."""
    NAMESPACES[name] = namespace
    for register_in in _registrations:
        register_in(namespace)


def channels_last(tensor: Tensor) -> bool:
    """Whether the channels of `tensor` are adjacent in memory, so that results are channels_last too."""
    return tensor.size(1) > 1 and tensor.stride(1) == 1 and tensor.stride(3) != 1


def empty_like_layout(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor of `shape` in the layout of the native operators' results, for fake implementations."""
    memory_format = torch.channels_last if channels_last(tensor) else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or tensor.dtype, device=tensor.device, memory_format=memory_format)


def register(
    name: str,
    fake: Callable,
    *,
    setup_context: Callable | None = None,
    backward: Callable | None = None,
    differentiable: bool = True,
    linear: bool = False,
    promote: bool = False,
) -> None:
    """Registers the Python side of an operator in each of its namespaces.

    Args:
        fake: shapes, dtypes and strides of the results, for torch.compile and torch.export.
        setup_context, backward: the gradient, as in torch.library.register_autograd; `backward(ops, ctx, *grads)` also
            gets the namespace of the matching `*_backward` operator.
        differentiable: an operator that is, but has no `backward`, raises RuntimeError on double backward.
        linear: whether the results are linear in all tensors together.
        promote: under autocast, cast tensor arguments to their widest dtype, as torch.cat does;
            torch.library.register_autocast would cast them all to one fixed dtype.
    """
    if not _devices:
        return

    def register_in(namespace: str) -> None:
        qualified, ops = f"{namespace}::{name}", getattr(torch.ops, namespace)
        if not hasattr(ops, name):  # a CPU-only operator
            return
        torch.library.register_fake(qualified, fake)
        twice = functools.partial(no_double_backward, f"a2s::{name}")
        if backward is not None:
            backward_on = functools.partial(backward, _memory.operators(namespace))
            torch.library.register_autograd(qualified, backward_on, setup_context=setup_context)
        elif differentiable:
            torch.library.register_autograd(qualified, twice)
        if promote:
            for device in ("CPU", "CUDA"):
                promoted = functools.partial(_promoted, getattr(ops, name), device.lower())
                _library(namespace).impl(name, promoted, f"Autocast{device}")
        rules = _rules.setdefault(namespace, {})
        eager = functools.partial(backward, Calls(rules)) if backward else twice
        guarded = getattr(_memory.operators(namespace), name)
        rules[name] = Rule(f"a2s::{name}", guarded, setup_context, eager, linear, differentiable, promote)

    _registrations.append(register_in)
    for namespace in NAMESPACES.values():
        register_in(namespace)


def namespaces_of(name: str) -> list[str]:
    """The namespaces that define an operator; the operators for the CPU alone are in `a2s` only."""
    return [namespace for namespace in NAMESPACES.values() if hasattr(getattr(torch.ops, namespace), name)]


@functools.cache
def _library(namespace: str) -> torch.library.Library:
    return torch.library.Library(namespace, "IMPL")


def _promoted(operator: Any, device: str, *args: Any) -> Any:
    tensors = [t for a in args for t in (a if isinstance(a, (list, tuple)) else [a]) if isinstance(t, Tensor)]
    widest = functools.reduce(torch.promote_types, (t.dtype for t in tensors))

    def cast(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [cast(item) for item in value]
        return value.to(widest) if isinstance(value, Tensor) else value

    with torch.autocast(device, enabled=False):
        return operator(*[cast(a) for a in args])
