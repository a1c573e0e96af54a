"""How a GPU multiplies float32 matrices."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
