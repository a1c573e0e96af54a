"""The arithmetic that a net computes in."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from a2s_repro.errors import InputError

PRECISIONS = ("caffe", "tf32", "bf16")
"""caffe: float32 throughout. tf32: a GPU's float32 products in TensorFloat-32. bf16: autocast to bfloat16, and tf32."""


@contextmanager
def float32_products(mode: str) -> Iterator[None]:
    """Within the block, a GPU's float32 products and convolutions are exact ("ieee") or in TensorFloat-32 ("tf32").

    By default torch runs convolutions in TensorFloat-32, with 10 bits of mantissa; Caffe never does.

    torch has two interfaces to these settings, `fp32_precision` and `allow_tf32`, and refuses to read the older one
    where the newer one has set products and convolutions apart from it. Inductor and other libraries still read the
    older one, so it is the one that is set: torch then keeps both in step. Both are restored.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    flags = [(backend, _allow_tf32(backend)) for backend in (matmul, cudnn)]
    precisions = [(backend, backend.fp32_precision) for backend in (matmul, cudnn.conv, cudnn.rnn)]
    for backend, _ in flags:
        backend.allow_tf32 = mode == "tf32"
    try:
        yield
    finally:
        for backend, allowed in flags:
            if allowed is not None:
                backend.allow_tf32 = allowed
        for backend, precision in precisions:
            backend.fp32_precision = precision


def _allow_tf32(backend: Any) -> bool | None:
    """The older setting of a backend; None where the newer one contradicts it and torch refuses to read it."""
    try:
        return backend.allow_tf32
    except RuntimeError:
        return None


def products_of(precision: str) -> AbstractContextManager[None]:
    """`float32_products` for one of PRECISIONS."""
    return float32_products("ieee" if precision == "caffe" else "tf32")


def autocast_of(precision: str, device: torch.device) -> torch.autocast:
    """What runs a net in one of PRECISIONS, beside `products_of` it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def check_precision(precision: str, device: torch.device) -> None:
    """Raises InputError for what is none of PRECISIONS; warns of bf16 on a processor that takes longer for it."""
    if precision not in PRECISIONS:
        raise InputError(f"precision '{precision}' is not known; it is one of {', '.join(PRECISIONS)}.")
    if precision == "bf16" and device.type == "cpu" and not _multiplies_bfloat16():
        warnings.warn(
            "this processor has no units for products of bfloat16: precision caffe takes less time than bf16.",
            stacklevel=2,
        )


def _multiplies_bfloat16() -> bool:
    """Whether a CPU multiplies bfloat16 faster than float32. Without AMX, Intel's do not (docs/performance.md)."""
    has = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch that is supported
    vectors = has.get("avx512_bf16") and not has["cpu_name"].startswith("Intel")
    return has.get("architecture") != "x86_64" or bool(has["amx_bf16"] or vectors)
