"""Every operator in every form: the reference's meaning, gradients, layouts, odd shapes, errors."""

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from torch import Tensor

from a2s_repro import ops
from tests.backends import Backend

# One float32 program against another: relative to the largest value. float16 and bfloat16 results are the float32 ones
# rounded once, so half a unit in the last place of each, plus a flip of it.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

# Merged size, sizes of the scales' maps: the nets' own (41, 31, 21), odd ratios, one-pixel maps, downsampling.
GRIDS = {
    "paper": ((41, 41), [(41, 41), (31, 31), (21, 21)]),
    "two-scales": ((9, 13), [(9, 13), (5, 7)]),
    "one-scale": ((8, 5), [(3, 4)]),
    "four-scales": ((9, 9), [(9, 9), (7, 7), (5, 5), (3, 3)]),
    "unaligned": ((10, 7), [(3, 11), (10, 7), (4, 2)]),
    "one-pixel-maps": ((6, 5), [(6, 5), (1, 1), (1, 3)]),
    "one-pixel-out": ((1, 1), [(4, 5), (1, 1)]),
    "shrinking": ((4, 3), [(17, 9), (4, 3)]),
    "tiny": ((4, 3), [(4, 3), (2, 5)]),
}


def make_scores(grid: str, channels: int = 3, batch: int = 2, dtype=torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64).to(dtype)
        for size in GRIDS[grid][1]
    ]


def make_logits(grid: str, size=None, batch: int = 2, dtype=torch.float64) -> Tensor:
    merged, sizes = GRIDS[grid]
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, len(sizes), *(size or merged), generator=generator, dtype=torch.float64).to(dtype)


def interp_all(*scores: Tensor, size) -> tuple[Tensor, ...]:
    return tuple(ops.interp(score, size) for score in scores)


def shift_add_all(*inputs: Tensor, size) -> Tensor:
    *planes, result = inputs
    for each in planes:
        result = ops.interp_shift_add(each, result)
    return result


# name -> (function of tensors, whether it also takes logits)
OPERATORS: dict[str, tuple[Callable, bool]] = {
    "interp": (interp_all, False),
    "interp_concat": (lambda *s, size: ops.interp_concat(s, size), False),
    "interp_shift_add": (shift_add_all, False),
    "scale_average": (lambda *s, size: ops.scale_average(s, size), False),
    "scale_average_0.33333": (lambda *s, size: ops.scale_average(s, size, 0.33333), False),
    "scale_max": (lambda *s, size: ops.scale_max(s, size), False),
    "scale_softmax": (lambda *s, size: ops.scale_softmax(s[-1]), True),
    "scale_merge": (lambda *s, size: ops.scale_merge(s[:-1], s[-1]), True),
    "scale_merge_resized_weights": (lambda *s, size: ops.scale_merge(s[:-1], s[-1], size), True),
    "scale_merge_recalibrated": (lambda *s, size: ops.scale_merge(s[:-2], s[-2], recalibration=s[-1]), True),
}


def make_inputs(operator: str, grid: str, dtype=torch.float64, batch: int = 2, channels: int = 3) -> list[Tensor]:
    inputs = make_scores(grid, 9 * channels if operator == "interp_shift_add" else channels, batch, dtype)
    if OPERATORS[operator][1]:
        size = (3, 4) if operator == "scale_merge_resized_weights" else None
        inputs.append(make_logits(grid, size, batch, dtype))
    if operator in ("interp_shift_add", "scale_merge_recalibrated"):
        generator = torch.Generator().manual_seed(3)
        shape = (batch, channels, *GRIDS[grid][0])
        inputs.append(torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype))
    return inputs


def outputs_and_gradients(operator: str, grid: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    """All outputs, then the gradients of all inputs under fixed random output gradients."""
    function, _ = OPERATORS[operator]
    inputs = [x.detach().requires_grad_() for x in inputs]
    outputs = function(*inputs, size=GRIDS[grid][0])
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    generator = torch.Generator().manual_seed(2)
    grads = [torch.empty_like(y) for y in outputs]  # in the layout of the outputs
    for grad in grads:
        grad.copy_(torch.randn(grad.shape, generator=generator, dtype=torch.float64))
    used = [x for x in inputs if operator != "scale_softmax" or x is inputs[-1]]
    return [y.detach() for y in outputs] + list(torch.autograd.grad(outputs, used, grads))


def assert_close(given: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> None:
    assert len(given) == len(expected)
    for a, b in zip(given, expected, strict=True):
        assert a.shape == b.shape
        bound = TOLERANCE[dtype] * max(1.0, b.double().abs().max().item())
        assert (a.cpu().double() - b.cpu().double()).abs().max() <= bound


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_equals_the_reference(operator: str, grid: str, backend: Backend) -> None:
    inputs = make_inputs(operator, grid)
    with ops.use_backend("reference"):
        expected = outputs_and_gradients(operator, grid, inputs)
    given = outputs_and_gradients(operator, grid, [x.to(backend.device) for x in inputs])
    assert_close(given, expected, torch.float64)


@cache
def of_21_channels(operator: str, dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Inputs on the papers' grid, and the results and gradients of the reference in float64."""
    inputs = make_inputs(operator, "paper", dtype, channels=3 if operator == "interp_shift_add" else 21)
    with ops.use_backend("reference"):
        return inputs, outputs_and_gradients(operator, "paper", [x.double() for x in inputs])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_dtypes_and_layouts(operator: str, channels_last: bool, dtype: torch.dtype, backend: Backend) -> None:
    inputs, expected = of_21_channels(operator, dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    given = [x.to(backend.device).contiguous(memory_format=layout) for x in inputs]
    given = outputs_and_gradients(operator, "paper", given)
    assert all(y.dtype == dtype for y in given)
    assert_close(given, expected, dtype)


def test_the_cpu_loops_refuse_float16() -> None:
    """The public functions run it on the references."""
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float16)
    with pytest.raises(RuntimeError, match="a2s::interp: maps must be float32, float64 or bfloat16 on the CPU"):
        torch.ops.a2s.interp(x, 3, 3)
    assert ops.interp(x, (3, 3)).dtype == torch.float16


@pytest.mark.parametrize("operator", OPERATORS)
def test_result_keeps_the_layout_of_its_first_input(operator: str) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        inputs = [x.contiguous(memory_format=layout) for x in make_inputs(operator, "paper")]
        results = OPERATORS[operator][0](*inputs, size=(41, 41))
        for result in results if isinstance(results, tuple) else [results]:
            assert result.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("operator", OPERATORS)
def test_arbitrary_strides_need_no_copy(operator: str, backend: Backend) -> None:
    inputs = make_inputs(operator, "unaligned")
    with ops.use_backend("reference"):
        expected = outputs_and_gradients(operator, "unaligned", inputs)
    # Every second element of a wider, transposed buffer.
    strided = []
    for x in inputs:
        buffer = torch.full((*x.shape[:2], x.shape[3] * 2, x.shape[2]), torch.nan, dtype=x.dtype, device=backend.device)
        view = buffer[:, :, ::2].transpose(2, 3)
        view.copy_(x)
        strided.append(view)
    assert_close(outputs_and_gradients(operator, "unaligned", strided), expected, torch.float64)


@pytest.mark.parametrize("operator", OPERATORS)
def test_empty_batch(operator: str, backend: Backend) -> None:
    inputs = [x.to(backend.device) for x in make_inputs(operator, "two-scales", batch=0)]
    results = outputs_and_gradients(operator, "two-scales", inputs)
    assert all(result.size(0) == 0 for result in results)


@pytest.mark.parametrize("operator", OPERATORS)
def test_gradcheck(operator: str, backend: Backend) -> None:
    function, _ = OPERATORS[operator]
    inputs = [x.to(backend.device).requires_grad_() for x in make_inputs(operator, "tiny", batch=1, channels=2)]
    assert torch.autograd.gradcheck(lambda *s: function(*s, size=GRIDS["tiny"][0]), inputs)


@pytest.mark.parametrize("operator", OPERATORS)
def test_same_bits_every_run(operator: str, backend: Backend) -> None:
    inputs = [x.to(backend.device) for x in make_inputs(operator, "paper", torch.float32, channels=8)]
    first = outputs_and_gradients(operator, "paper", inputs)
    for _ in range(3):
        again = outputs_and_gradients(operator, "paper", inputs)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("channels", [129, 132], ids=["odd", "whole packs"])
def test_shift_add_of_more_channels_than_are_worked_on_at_once(channels: int, backend: Backend) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 9 * channels, 2, 3), (1, channels, 4, 5)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    with ops.use_backend("reference"):
        expected = outputs_and_gradients("interp_shift_add", "tiny", inputs)
    inputs = [x.to(backend.device).contiguous(memory_format=torch.channels_last) for x in inputs]
    assert_close(outputs_and_gradients("interp_shift_add", "tiny", inputs), expected, torch.float64)


def test_average_is_bit_equal_to_sum_then_multiply(backend: Backend) -> None:
    scores = [s.to(backend.device) for s in make_scores("paper", channels=21, dtype=torch.float32)]
    merged = ops.scale_average(scores, (41, 41), 0.33333)
    one, two, three = (ops.interp(s, (41, 41)) for s in scores)
    assert torch.equal(merged, (one + two + three) * torch.tensor(0.33333, dtype=torch.float32))


def test_max_ties_go_where_caffes_eltwise_sends_them(backend: Backend) -> None:
    """The second map wins a tie with the first; a later map must be strictly greater."""
    scores = [torch.ones(1, 1, 2, 2, dtype=torch.float64, device=backend.device, requires_grad=True) for _ in range(3)]
    ops.scale_max(scores, (2, 2)).sum().backward()
    assert [s.grad.sum().item() for s in scores] == [0, 4, 0]


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_segment_labels_the_largest_resized_score(dtype: torch.dtype, channels_last: bool, backend: Backend) -> None:
    scores = torch.randn(2, 21, 9, 9, generator=torch.Generator().manual_seed(0)).to(backend.device, dtype)
    if channels_last:
        scores = scores.contiguous(memory_format=torch.channels_last)
    labels = ops.segment(scores, (65, 65))
    resized = ops.interp(scores.float() if dtype == torch.bfloat16 else scores, (65, 65))
    assert labels.dtype == torch.uint8 and labels.shape == (2, 65, 65)
    chosen = resized.gather(1, labels.long()[:, None])
    assert torch.equal(chosen[:, 0], resized.amax(1))
    later = torch.arange(21, device=backend.device)[:, None, None] > labels.long()[:, None]
    assert not ((resized >= chosen) & later).any()


def test_segment_gives_ties_to_the_larger_class(backend: Backend) -> None:
    scores = torch.zeros(1, 4, 3, 3, device=backend.device)
    scores[0, 3] = -1
    assert ops.segment(scores, (5, 7)).unique().tolist() == [2]


def test_equal_sizes_copy_even_infinities(backend: Backend) -> None:
    """A copy, not a sum with zero weights: 0 * inf would be NaN."""
    x = torch.tensor([[[[float("inf"), 1.0], [2.0, -float("inf")]]]], device=backend.device)
    assert torch.equal(ops.interp(x, (2, 2)), x)
    assert torch.equal(ops.scale_max([x, x - 1], (2, 2)), x)


def test_coordinates_are_float32_in_float64_too(backend: Backend) -> None:
    """321 -> 241 samples at fl(4/3) * i: the rounding of the coordinate is part of the layer."""
    ramp = torch.arange(321, dtype=torch.float64, device=backend.device).reshape(1, 1, 1, 321)
    position = torch.tensor(4 / 3, dtype=torch.float32) * torch.arange(241, dtype=torch.float32)
    assert torch.equal(ops.interp(ramp, (1, 241)).flatten().cpu(), position.double().clamp(max=320))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_any_number_of_scales(count: int, backend: Backend) -> None:
    """Up to four scales are fused; more run on the reference."""
    scores = [torch.randn(1, 2, 3 + s, 3, dtype=torch.float64, device=backend.device) for s in range(count)]
    logits = torch.randn(1, count, 6, 5, dtype=torch.float64, device=backend.device)
    merged, weights = ops.scale_merge(scores, logits)
    expected = sum(weights[:, s : s + 1] * ops.interp(scores[s], (6, 5)) for s in range(count))
    assert torch.allclose(merged, expected, atol=1e-12)
    assert torch.allclose(weights.sum(1), torch.ones_like(weights[:, 0]))
    assert ops.scale_average(scores, (6, 5)).shape == ops.scale_max(scores, (6, 5)).shape == (1, 2, 6, 5)


@pytest.mark.parametrize(
    ("zoom", "shrink", "n", "expected"),
    [(None, 2, 321, 161), (None, 8, 321, 41), (3, 4, 321, 241), (4, 3, 31, 41), (8, None, 65, 513), (2, None, 1, 1)],
)
def test_interp_size(zoom: int | None, shrink: int | None, n: int, expected: int) -> None:
    assert ops.interp_size(n, zoom=zoom, shrink=shrink) == expected


MAP = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.interp(MAP[0], (2, 2)), ["interp", "x", "(3, 4, 4)", "(N, C, H, W)"]),
        (lambda: ops.interp(MAP.int(), (2, 2)), ["interp", "x", "float32", "torch.int32"]),
        (lambda: ops.interp(MAP, (0, 2)), ["interp", "size", "(0, 2)"]),
        (lambda: ops.interp(MAP, (2, 2), pad=(1, 0)), ["interp", "pad", "(1, 0)"]),
        (lambda: ops.interp(MAP, (2, 2), pad=(-2, -2)), ["interp", "pad", "(-2, -2)", "4x4"]),
        (lambda: ops.interp_size(9, zoom=0), ["interp_size", "zoom", "0"]),
        (lambda: ops.interp_concat([], (2, 2)), ["interp_concat", "features", "at least one"]),
        (lambda: ops.interp_concat([MAP, MAP[:1]], (2, 2)), ["interp_concat", "features[1]", "batch size 1"]),
        (lambda: ops.interp_shift_add(MAP, MAP), ["interp_shift_add", "planes", "3 channels", "nine"]),
        (lambda: ops.interp_shift_add(MAP.repeat(1, 9, 1, 1), MAP[:1]), ["interp_shift_add", "base", "batch size 1"]),
        (lambda: ops.interp_concat_conv2d([MAP], MAP[:, :, :2, :2], None, (2, 2)), ["weight", "(2, 3, 2, 2)", "3, 3)"]),
        (lambda: ops.scale_max([MAP, MAP[:, :2]], (2, 2)), ["scale_max", "scores[1]", "2 channels"]),
        (lambda: ops.scale_average([MAP, MAP.double()], (2, 2)), ["scale_average", "scores[1]", "torch.float64"]),
        (lambda: ops.scale_merge([MAP, MAP], MAP), ["scale_merge", "logits", "3 channels", "2 score maps"]),
        (lambda: ops.scale_merge(MAP, MAP), ["scale_merge", "scores", "list"]),
        (lambda: ops.segment(torch.zeros(1, 257, 1, 1), (2, 2)), ["segment", "257", "256"]),
        (lambda: ops.scale_softmax(torch.zeros(2, 0, 3, 3)), ["scale_softmax", "logits", "(2, 0, 3, 3)"]),
    ],
)
def test_wrong_arguments_get_one_sentence(call: Callable, words: list[str], backend: Backend) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    assert all(word in message for word in words), message
