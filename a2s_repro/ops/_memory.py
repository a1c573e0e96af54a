"""A lack of memory in a native operator, as torch's own exception.

The stable ABI of the libraries turns a failed allocation into a RuntimeError that names a call of `aten::empty` and
nothing else.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Operators:
    """The operators of a torch namespace.

    Raises:
        torch.OutOfMemoryError: a result could not be allocated. The message names operator, shapes and bytes.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = getattr(torch.ops, namespace)

    def __getattr__(self, name: str) -> Callable:
        operator = getattr(self._namespace, name)

        def call(*args: Any) -> Any:
            try:
                return operator(*args)
            except RuntimeError as error:
                if "aten::empty" not in str(error):
                    raise
                _raise_errors_of_earlier_kernels(args)
                raise torch.OutOfMemoryError(_sentence(name, operator, args)) from error

        setattr(self, name, call)
        return call


@functools.cache
def operators(namespace: str) -> Operators:
    return Operators(namespace)


def _raise_errors_of_earlier_kernels(args: Any) -> None:
    """An allocation on a GPU fails after an illegal access by an earlier kernel, too, which this call raises."""
    for tensor in _tensors(args):
        if tensor.is_cuda:
            torch.cuda.synchronize(tensor.device)


def _sentence(name: str, operator: Callable, args: Any) -> str:
    results = _tensors(operator(*_on_meta(args)))
    shapes = ", ".join(f"{tuple(t.shape)} of {str(t.dtype).removeprefix('torch.')}" for t in results)
    return f"a2s::{name}: out of memory; its results are {shapes}, {sum(t.nbytes for t in results)} bytes."


def _on_meta(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_on_meta(item) for item in value]
    return value.detach().to("meta") if isinstance(value, Tensor) else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, Tensor) else []
