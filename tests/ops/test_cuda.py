"""On a GPU: captured graphs, streams, devices, deterministic mode, autocast, compilation, more than 2^31 elements."""

import pytest
import torch
from torch import Tensor

from a2s_repro import ops
from tests.ops.test_operators import GRIDS, OPERATORS, make_inputs, outputs_and_gradients
from tests.ops.test_registration import merge_inputs, merge_step

if not torch.cuda.is_available():
    pytest.skip("needs a GPU that torch can use", allow_module_level=True)

pytestmark = pytest.mark.cuda


def cuda_inputs(operator: str, layout: torch.memory_format = torch.contiguous_format) -> list[Tensor]:
    inputs = make_inputs(operator, "paper", torch.float32, channels=21)
    return [x.contiguous(memory_format=layout).cuda() for x in inputs]


def gradients(operator: str, inputs: list[Tensor]) -> list[Tensor]:
    """All outputs and gradients. Nothing here copies from the CPU or synchronises, so it can be captured."""
    outputs = OPERATORS[operator][0](*inputs, size=GRIDS["paper"][0])
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    used = inputs[-1:] if operator == "scale_softmax" else inputs
    return [y.detach() for y in outputs] + list(torch.autograd.grad(sum((y**2).sum() for y in outputs), used))


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_captured_graph_replays_forward_and_backward(operator: str) -> None:
    inputs = [x.requires_grad_() for x in cuda_inputs(operator)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            gradients(operator, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(operator, inputs)
    for seed in (0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            for x in inputs:
                x.normal_()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, gradients(operator, inputs), strict=True))


def test_segment_is_captured_too() -> None:
    scores = torch.zeros(2, 21, 65, 65, device="cuda")
    ops.segment(scores, (513, 513))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        labels = ops.segment(scores, (513, 513))
    scores.normal_()
    graph.replay()
    assert torch.equal(labels, ops.segment(scores, (513, 513)))


@pytest.mark.parametrize("operator", OPERATORS)
def test_work_is_queued_on_the_current_stream(operator: str) -> None:
    """The inputs are written on a side stream after a pause: a kernel on another stream would read them too early."""
    values = cuda_inputs(operator)
    expected = gradients(operator, [x.clone().requires_grad_() for x in values])
    inputs = [torch.zeros_like(x) for x in values]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for x, value in zip(inputs, values, strict=True):
            x.copy_(value)
        given = gradients(operator, [x.requires_grad_() for x in inputs])
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("operator", OPERATORS)
def test_work_runs_on_the_device_of_its_tensors(operator: str) -> None:
    """The current device does not matter, and it does not change."""
    inputs = cuda_inputs(operator)
    expected = outputs_and_gradients(operator, "paper", inputs)
    with torch.cuda.device(0):
        given = outputs_and_gradients(operator, "paper", [x.to("cuda:1") for x in inputs])
        assert torch.cuda.current_device() == 0
    assert all(a.device.index == 1 and torch.equal(a.cpu(), b.cpu()) for a, b in zip(given, expected, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_same_bits_in_every_run_under_deterministic_algorithms(operator: str, layout: torch.memory_format) -> None:
    """Deterministic mode also fills new tensors with NaN, so an element that no thread wrote would show."""
    inputs = cuda_inputs(operator, layout)
    torch.use_deterministic_algorithms(True)
    try:
        first = outputs_and_gradients(operator, "paper", inputs)
        assert not any(result.isnan().any() for result in first)
        for _ in range(20):
            again = outputs_and_gradients(operator, "paper", inputs)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


def test_autocast_brings_maps_to_their_widest_dtype() -> None:
    """Each gradient has its map's dtype."""
    a, b, logits = (x.detach().cuda() for x in merge_inputs(9, batch=2))
    inputs = [a.requires_grad_(), b.bfloat16().requires_grad_(), logits.bfloat16().requires_grad_()]
    with torch.autocast("cuda", torch.bfloat16):
        merged, weights = ops.scale_merge(inputs[:2], inputs[2])
    assert merged.dtype == weights.dtype == torch.float32
    grads = torch.autograd.grad((merged**2).sum(), inputs)
    assert [grad.dtype for grad in grads] == [torch.float32, torch.bfloat16, torch.bfloat16]


def test_inductor_compiles_forward_and_backward() -> None:
    inputs = [x.detach().cuda().requires_grad_() for x in merge_inputs(9, batch=4)]
    compiled = torch.compile(merge_step, fullgraph=True)
    given, expected = (torch.autograd.grad(step(*inputs).sum(), inputs) for step in (compiled, merge_step))
    for a, b in zip(given, expected, strict=True):
        torch.testing.assert_close(a, b)


LARGE = (129, 4097, 4097)  # 2,165,317,761 elements: more than 2^31


def needs_memory(gigabytes: int) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of free GPU memory, there are {free:.0f}")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_more_than_2_31_elements(layout: torch.memory_format) -> None:
    """The last channel, whose offsets pass 2^31 in NCHW, and in it the last rows, whose offsets do in channels_last."""
    needs_memory(20)
    channels, *size = LARGE
    small = torch.randn(1, channels, 5, 5, dtype=torch.float16)
    small[:, -1] += 100
    small = small.contiguous(memory_format=layout).cuda().requires_grad_()
    last = small.detach()[:, -1:].contiguous().requires_grad_()

    large, large_last = ops.interp(small, size), ops.interp(last, size)
    assert large.numel() > 2**31
    assert torch.equal(large[:, -1:], large_last)
    assert torch.equal(ops.interp(large, (5, 5))[:, -1:], ops.interp(large_last, (5, 5)))
    assert (ops.segment(large, (7, 7)) == channels - 1).all()

    grad = torch.ones_like(large)
    (given,) = torch.autograd.grad(large, small, grad)
    (expected,) = torch.autograd.grad(large_last, last, grad[:, -1:].contiguous())
    assert torch.equal(given[:, -1:], expected)


def test_merging_and_labelling_more_than_2_31_elements() -> None:
    needs_memory(30)
    channels, *size = LARGE
    x = torch.ones(1, channels, *size, dtype=torch.float16, device="cuda", requires_grad=True)
    merged = ops.scale_average([x, x], size)
    assert torch.equal(merged, x)
    (given,) = torch.autograd.grad(merged, x, merged.detach())
    assert torch.equal(given, x)
    del merged, given, x
    scores = torch.randn(channels, 3, 5, 5, device="cuda")
    labels = ops.segment(scores, size)
    assert labels.numel() > 2**31
    assert torch.equal(labels[-1:], ops.segment(scores[-1:], size))
