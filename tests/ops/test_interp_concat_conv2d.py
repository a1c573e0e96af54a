"""A convolution over maps that are resized and concatenated, against its definition."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from a2s_repro import ops
from tests.backends import Backend
from tests.ops.test_operators import assert_close

SIZE = (9, 13)
SIDES = {"first map aligned": (SIZE, (7, 9), (5, 7)), "none aligned": ((7, 9), (5, 7)), "all aligned": (SIZE, SIZE)}


def definition(features: Sequence[Tensor], weight: Tensor, bias: Tensor | None, size: tuple[int, int]) -> Tensor:
    return F.conv2d(ops.interp_concat(features, size), weight, bias, padding=weight.size(2) // 2)


def make_inputs(sides: str, kernel: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Features, filters, bias, and the gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, *side) for side in SIDES[sides]]
    shapes += [(6, 4 * len(shapes), kernel, kernel), (6,), (2, 6, *SIZE)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def result_and_gradients(function: Callable, *inputs: Tensor) -> list[Tensor]:
    *inputs, grad = inputs
    *features, weight, bias = inputs = [x.detach().requires_grad_() for x in inputs]
    result = function(features, weight, bias, SIZE)
    return [result.detach(), *torch.autograd.grad(result, inputs, grad)]


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("sides", SIDES)
def test_equals_its_definition(sides: str, kernel: int, channels_last: bool, backend: Backend) -> None:
    inputs = [x.to(backend.device) for x in make_inputs(sides, kernel)]
    if channels_last:
        inputs = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
    assert_close(
        result_and_gradients(ops.interp_concat_conv2d, *inputs),
        result_and_gradients(definition, *inputs),
        torch.float64,
    )


def test_no_bias(backend: Backend) -> None:
    for sides in SIDES:
        *features, weight, _, _ = (x.to(backend.device) for x in make_inputs(sides, 3))
        given = ops.interp_concat_conv2d(features, weight, None, SIZE)
        assert_close([given], [definition(features, weight, None, SIZE)], torch.float64)


def test_autocast_rounds_after_each_map(backend: Backend) -> None:
    """bfloat16 has 8 bits: planes and sums are rounded to half a unit of the last, sums of nine taps are not."""
    *features, weight, bias, _ = (x.to(backend.device) for x in make_inputs("first map aligned", 3, torch.float32))
    with torch.autocast(backend.device, torch.bfloat16):
        given = ops.interp_concat_conv2d(features, weight, bias, SIZE)
    expected = definition(features, weight, bias, SIZE)
    assert given.dtype == torch.bfloat16
    assert (given.float() - expected).abs().max() <= 2**-7 * expected.abs().max()


def test_compiles_without_graph_breaks_and_keeps_the_operator() -> None:
    inputs = make_inputs("first map aligned", 3)
    compiled = torch.compile(ops.interp_concat_conv2d, fullgraph=True, backend="aot_eager")
    given, expected = (result_and_gradients(f, *inputs) for f in (compiled, ops.interp_concat_conv2d))
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))

    class Layer(torch.nn.Module):
        def forward(self, features: list[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
            return ops.interp_concat_conv2d(features, weight, bias, SIZE)

    *features, weight, bias, _ = inputs
    program = torch.export.export(Layer(), (features, weight, bias))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("a2s.interp_shift_add.default") == 2
    assert torch.equal(program.module()(features, weight, bias), Layer()(features, weight, bias))
