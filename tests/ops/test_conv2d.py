"""Convolutions whose weight gradient is made of matrix products, against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from a2s_repro.ops.conv2d import MANY_CHANNELS, conv2d
from tests.ops.test_winograd import with_gradients


def outcome(function, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> list[torch.Tensor]:
    """The result, and the gradients of its inputs."""
    return with_gradients(function(x, weight, bias), *(y for y in (x, weight, bias) if y is not None))


@pytest.mark.parametrize(("window", "dilation"), [(1, 1), (3, 1), (3, 2), (3, 12)])
@pytest.mark.parametrize("biased", [True, False])
def test_equals_torch(window: int, dilation: int, biased: bool) -> None:
    """float64: only rounding can differ, 1e-13 of the largest value. Dilation 12 reaches beyond the 9 rows."""
    torch.manual_seed(0)
    x = torch.randn(2, MANY_CHANNELS, 9, 14, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(5, MANY_CHANNELS, window, window, dtype=torch.float64).contiguous(
        memory_format=torch.channels_last
    )
    inputs = x.requires_grad_(), weight.requires_grad_(), torch.randn(5, dtype=torch.float64).requires_grad_()
    inputs = inputs if biased else (*inputs[:2], None)
    padding = dilation * (window // 2)
    ours = outcome(lambda *y: conv2d(*y, dilation), *inputs)
    theirs = outcome(lambda *y: F.conv2d(*y, padding=padding, dilation=dilation), *inputs)
    assert "_Conv2d" in type(ours[0].grad_fn).__name__
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-13 * b.abs().max()


def test_runs_in_bfloat16_under_autocast() -> None:
    """Gradients of float32 weights are float32; all deviate by no more than twice what torch's bfloat16 does."""
    torch.manual_seed(0)
    x = torch.randn(1, 2 * MANY_CHANNELS, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(3, 2 * MANY_CHANNELS, 3, 3).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = outcome(lambda *y: conv2d(*y), x, weight, None)
        torchs = outcome(lambda *y: F.conv2d(*y, padding=1), x, weight, None)
    assert "_Conv2d" in type(ours[0].grad_fn).__name__
    theirs = outcome(lambda *y: F.conv2d(*y, padding=1), x, weight, None)
    assert [y.dtype for y in ours] == [torch.bfloat16, torch.float32, torch.float32]
    for a, b, exact in zip(ours, torchs, theirs, strict=True):
        assert (a - exact).abs().max() <= 2 * (b - exact).abs().max()


def test_other_layouts_and_few_channels_in_bfloat16_are_torchs() -> None:
    weight = torch.randn(3, MANY_CHANNELS, 3, 3, requires_grad=True)
    plain = conv2d(torch.randn(1, MANY_CHANNELS, 5, 5), weight)
    with torch.autocast("cpu", torch.bfloat16):
        few = conv2d(torch.randn(1, MANY_CHANNELS, 5, 5).contiguous(memory_format=torch.channels_last), weight)
    assert all("_Conv2d" not in type(y.grad_fn).__name__ for y in (plain, few))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_few_channels_have_a_bias_gradient_of_their_own(layout: torch.memory_format) -> None:
    """It is the sum of the result's gradient in channels_last, whatever layout that has, to the bit: oneDNN's differs
    in rounding, and a run of version 0.1 would end with other weights. Everything else is torch's."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 33, 29).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.randn(5, 4, 3, 3).requires_grad_(), torch.randn(5).requires_grad_()
    grad = torch.randn(2, 5, 33, 29).contiguous(memory_format=layout)
    result, theirs = conv2d(x, weight, bias), F.conv2d(x, weight, bias, padding=1)
    assert torch.equal(result, theirs)
    of_x, of_weight, of_bias = torch.autograd.grad(result, (x, weight, bias), grad)
    for ours, torchs in zip((of_x, of_weight), torch.autograd.grad(theirs, (x, weight), grad), strict=True):
        assert torch.equal(ours, torchs)
    assert torch.equal(of_bias, grad.contiguous(memory_format=torch.channels_last).sum((0, 2, 3)))
