"""The arithmetic that a net computes in."""

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


def check_precision(precision: str) -> None:
    """Raises InputError for what is none of PRECISIONS."""
    if precision not in PRECISIONS:
        raise InputError(f"precision '{precision}' is not known; it is one of {', '.join(PRECISIONS)}.")
