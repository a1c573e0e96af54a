"""Gradients beyond gradcheck: of some inputs or outputs, with odd strides, in every run and thread, and twice."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from a2s_repro import ops
from tests.backends import Backend
from tests.ops.test_operators import GRIDS, OPERATORS, assert_close, make_inputs, outputs_and_gradients


def used_inputs(operator: str, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return inputs[-1:] if operator == "scale_softmax" else inputs


def run(operator: str, grid: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    outputs = OPERATORS[operator][0](*inputs, size=GRIDS[grid][0])
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


@pytest.mark.parametrize("operator", OPERATORS)
def test_each_input_alone_gets_the_gradient_that_it_gets_among_all(operator: str, backend: Backend) -> None:
    inputs = [x.to(backend.device).requires_grad_() for x in make_inputs(operator, "unaligned")]
    used = used_inputs(operator, inputs)
    together = torch.autograd.grad(sum((y**2).sum() for y in run(operator, "unaligned", inputs)), used)
    for wanted, expected in zip(used, together, strict=True):
        alone = [x if x is wanted else x.detach() for x in inputs]
        outputs = [y for y in run(operator, "unaligned", alone) if y.requires_grad]
        (given,) = torch.autograd.grad(sum((y**2).sum() for y in outputs), [wanted])
        assert torch.equal(given, expected)


@pytest.mark.parametrize("output", [0, 1], ids=["merged", "weights"])
@pytest.mark.parametrize("operator", ["scale_merge", "scale_merge_resized_weights"])
def test_gradcheck_of_one_output_of_scale_merge(operator: str, output: int, backend: Backend) -> None:
    inputs = [x.to(backend.device).requires_grad_() for x in make_inputs(operator, "tiny", batch=1, channels=2)]
    assert torch.autograd.gradcheck(lambda *s: run(operator, "tiny", s)[output], inputs)


GRADIENTS = {
    "expanded": lambda grad: grad.new_full((1, 1, 1, 1), 0.5).expand(grad.shape),
    "channels_last": lambda grad: grad.contiguous(memory_format=torch.channels_last),
    "transposed": lambda grad: grad.transpose(2, 3).contiguous().transpose(2, 3),
    "a slice of channels": lambda grad: torch.cat([grad, grad], dim=1)[:, : grad.size(1)],
}


@pytest.mark.parametrize("layout", GRADIENTS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_output_gradients_of_any_strides(operator: str, layout: str, backend: Backend) -> None:
    """autograd hands over what the next layer's backward made: `y.sum()` an expanded scalar, `cat` a slice."""
    inputs = [x.to(backend.device).requires_grad_() for x in make_inputs(operator, "unaligned")]
    outputs, used = run(operator, "unaligned", inputs), used_inputs(operator, inputs)
    strided = [GRADIENTS[layout](torch.randn_like(y)) for y in outputs]
    given = torch.autograd.grad(outputs, used, strided, retain_graph=True)
    expected = torch.autograd.grad(outputs, used, [grad.contiguous() for grad in strided])
    assert_close(given, expected, torch.float64)


@pytest.mark.parametrize("operator", OPERATORS)
def test_inputs_changed_before_backward_are_noticed(operator: str) -> None:
    """Operators that save values refuse; Interp's gradient needs only sizes, so it is unchanged."""
    inputs = make_inputs(operator, "tiny")
    outputs = run(operator, "tiny", [x.requires_grad_() for x in inputs])
    total, used = sum(y.sum() for y in outputs), used_inputs(operator, inputs)
    expected = torch.autograd.grad(total, used, retain_graph=True)
    changed = outputs[0] if operator == "scale_softmax" else inputs[0]
    changed.detach().add_(1)
    if operator in ("scale_max", "scale_softmax") or operator.startswith("scale_merge"):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()
    else:
        given = torch.autograd.grad(total, used)
        assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_same_bits_in_every_run_with_any_number_of_threads(operator: str, channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    inputs = make_inputs(operator, "paper", torch.float32, batch=1, channels=21)
    inputs = [x.contiguous(memory_format=layout) for x in inputs]
    before = torch.get_num_threads()
    try:
        first = outputs_and_gradients(operator, "paper", inputs)
        for threads in (1, 2) * 10:
            torch.set_num_threads(threads)
            again = outputs_and_gradients(operator, "paper", inputs)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("operator", OPERATORS)
def test_double_backward_is_refused_by_name(operator: str) -> None:
    inputs = [x.requires_grad_() for x in make_inputs(operator, "tiny")]
    total = sum((y**2).sum() for y in run(operator, "tiny", inputs))
    first = torch.autograd.grad(total, used_inputs(operator, inputs), create_graph=True)
    with pytest.raises(RuntimeError, match=r"a2s::.*double backward is not supported; .* under .*'reference'"):
        sum((g**2).sum() for g in first).backward()


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_reference_can_be_differentiated_twice(operator: str) -> None:
    """The remedy that the refusal of double backward names."""
    inputs = [x.requires_grad_() for x in make_inputs(operator, "tiny", batch=1, channels=1)]
    used = used_inputs(operator, inputs)
    with ops.use_backend("reference"):
        assert torch.autograd.gradgradcheck(
            lambda *s: run(operator, "tiny", [*inputs[: -len(s)], *s] if len(s) < len(inputs) else s), used
        )
