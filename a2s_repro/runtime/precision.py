"""Arithmetic precision of a net."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from a2s_repro.errors import check_known

PRECISIONS = ("fp32", "tf32", "bf16")
"""fp32: float32 throughout. tf32: a GPU's float32 products in TensorFloat-32. bf16: autocast to bfloat16, and tf32."""


@contextmanager
def float32_products(mode: str) -> Iterator[None]:
    """Within the block, a GPU's float32 matrix products and convolutions are exact ("ieee") or TensorFloat-32 ("tf32").

    By default torch runs convolutions in TensorFloat-32, with 10 bits of mantissa; Caffe never does.

    torch has two interfaces to these settings, `fp32_precision` and `allow_tf32`. Reading the older `allow_tf32` raises
    if the newer interface has set products and convolutions differently. Inductor and other libraries still read the
    older one, so this function sets the older one, and torch updates the newer one accordingly. Both are restored.
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
    """The older setting of a backend, or None if torch raises because the newer setting contradicts it."""
    try:
        return backend.allow_tf32
    except RuntimeError:
        return None


def precision_named(name: str) -> str:
    """The one of PRECISIONS with this name, or for `caffe`, its name in version 0.1, fp32.

    Raises InputError for an unknown name.
    """
    precision = "fp32" if name == "caffe" else name
    check_known("precision", precision, PRECISIONS)
    return precision


def precision_on(name: str, device: torch.device) -> str:
    """The one of PRECISIONS with this name; for `auto` the fastest on the device: bf16 where it has units for it."""
    if name != "auto":
        return precision_named(name)
    if device.type == "cpu":
        return "bf16" if multiplies_bfloat16() else "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"


@contextmanager
def kernels_chosen_by_trial(enabled: bool) -> Iterator[None]:
    """Within the block, cuDNN times its convolutions for every new shape and keeps the fastest, if `enabled`.

    It may choose another in another run, which rounds differently.
    """
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, enabled
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def products_of(precision: str) -> AbstractContextManager[None]:
    """`float32_products` for a precision."""
    return float32_products("ieee" if precision_named(precision) == "fp32" else "tf32")


def autocast_of(precision: str, device: torch.device) -> torch.autocast:
    """The autocast context for a precision, to use together with `products_of`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def check_precision(precision: str, device: torch.device) -> None:
    """Raises InputError for an unknown precision; warns about bf16 on a processor where it is slower than float32."""
    if precision_named(precision) == "bf16" and device.type == "cpu" and not multiplies_bfloat16():
        warnings.warn(
            "this processor has no units for products of bfloat16: precision fp32 takes less time than bf16.",
            stacklevel=2,
        )


def multiplies_bfloat16() -> bool:
    """Whether bfloat16 products are faster than float32 on this CPU; not on Intel without AMX (docs/performance.md)."""
    has = getattr(torch.cpu, "get_capabilities", dict)()  # missing in some supported versions of torch
    vectors = has.get("avx512_bf16") and not has["cpu_name"].startswith("Intel")
    return has.get("architecture") != "x86_64" or bool(has["amx_bf16"] or vectors)
