"""The arithmetic that a net computes in."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from a2s_repro.errors import InputError

PRECISIONS = ("caffe", "tf32", "bf16")
"""caffe: float32 throughout. tf32: a GPU's float32 products in TensorFloat-32. bf16: autocast to bfloat16, and tf32."""


@contextmanager
def float32_products(mode: str) -> Iterator[None]:
    """Within the block, a GPU's float32 products and convolutions are exact ("ieee") or in TensorFloat-32 ("tf32").

    Left alone, torch runs convolutions in TensorFloat-32, with 10 bits of mantissa; Caffe never does.
    """
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = mode
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


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
