"""Allocations of operators that fail."""

import pytest
import torch

from a2s_repro import ops
from a2s_repro.runtime.devices import is_out_of_memory

SIDE = 2**24
"""Pixels along an axis: float32 maps of this side take a petabyte."""


def test_a_result_too_large_for_memory_is_named() -> None:
    with pytest.raises(torch.OutOfMemoryError) as error:
        ops.scale_merge([torch.zeros(1, 3, 1, 1)] * 2, torch.zeros(1, 2, 1, 1), (SIDE, SIDE))
    assert str(error.value) == (
        "a2s::scale_merge: out of memory; its results are (1, 3, 16777216, 16777216) of float32, "
        f"(1, 2, 16777216, 16777216) of float32, {5 * SIDE**2 * 4} bytes."
    )
    assert is_out_of_memory(error.value)


def test_a_gradient_too_large_for_memory_is_named() -> None:
    x = torch.zeros(1, 1, 1, 1).expand(1, 1, SIDE, SIDE).requires_grad_()
    y = ops.interp(x, (2, 2))
    with pytest.raises(torch.OutOfMemoryError, match=r"a2s::interp_backward: .* \(1, 1, 16777216, 16777216\)"):
        torch.autograd.grad(y.sum(), x)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="double backward") as error:
        x = torch.ones(1, 1, 2, 2, requires_grad=True)
        (grad,) = torch.autograd.grad(ops.interp(x, (3, 3)).square().sum(), x, create_graph=True)
        torch.autograd.grad(grad.sum(), x)
    assert not isinstance(error.value, torch.OutOfMemoryError)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_as_well() -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError, match="a2s::interp: out of memory"):
        ops.interp(torch.zeros(1, 1, 1, 1, device="cuda"), (2**18, 2**18))
