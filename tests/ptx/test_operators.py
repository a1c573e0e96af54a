"""The operators' tests on the kernels as nvcc compiles them, and what only kernels can get wrong."""

import ctypes
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from a2s_repro import ops

# The tests among these run here on the fixture `backend` of this folder.
from tests.ops.test_operators import (  # noqa: F401
    GRIDS,
    OPERATORS,
    assert_close,
    make_inputs,
    make_scores,
    outputs_and_gradients,
    test_any_number_of_scales,
    test_arbitrary_strides_need_no_copy,
    test_average_is_bit_equal_to_sum_then_multiply,
    test_coordinates_are_float32_in_float64_too,
    test_empty_batch,
    test_equal_sizes_copy_even_infinities,
    test_equals_the_reference,
    test_max_ties_go_where_caffes_eltwise_sends_them,
    test_segment_gives_ties_to_the_larger_class,
    test_segment_labels_the_largest_resized_score,
    test_shift_add_of_more_channels_than_are_worked_on_at_once,
)
from tests.ptx.device import Device, tensors_of
from tests.ptx.predict import spread_sample

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
every_operator = pytest.mark.parametrize("operator", OPERATORS)


def expected_of(operator: str, grid: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    with ops.use_backend("reference"):
        return outputs_and_gradients(operator, grid, [x.double() for x in inputs])


def agrees(operator: str, grid: str, inputs: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Outputs and gradients on the kernels are those of the reference."""
    assert_close(outputs_and_gradients(operator, grid, inputs), expected_of(operator, grid, inputs), dtype)


@pytest.mark.long
@dtypes
@layouts
@pytest.mark.parametrize("channels", [3, 8], ids=["odd", "whole packs"])
@every_operator
def test_dtypes_and_layouts(
    operator: str, channels: int, layout: torch.memory_format, dtype: torch.dtype, ptx: Device
) -> None:
    inputs = make_inputs(operator, "unaligned", dtype, channels=channels)
    agrees(operator, "unaligned", [x.contiguous(memory_format=layout) for x in inputs], dtype)


@pytest.mark.slow
@dtypes
@layouts
@pytest.mark.parametrize("channels", [21, 150])
@every_operator
def test_sizes_of_the_papers(
    operator: str, channels: int, layout: torch.memory_format, dtype: torch.dtype, ptx: Device
) -> None:
    inputs = make_inputs(operator, "paper", dtype, channels=channels, batch=1)
    agrees(operator, "paper", [x.contiguous(memory_format=layout) for x in inputs], dtype)


def one_element_further(x: Tensor, layout: torch.memory_format) -> Tensor:
    """The same map, one element behind the alignment of packs."""
    room = torch.full((x.numel() + 1,), torch.nan, dtype=x.dtype)
    strides = x.contiguous(memory_format=layout).stride()
    view = room.as_strided(x.shape, strides, 1)
    return view.copy_(x)


def slice_of_channels(x: Tensor, layout: torch.memory_format) -> Tensor:
    """The same map, as channels 8 and on of a wider one."""
    n, c, h, w = x.shape
    wider = torch.full((n, c + 16, h, w), torch.nan, dtype=x.dtype).contiguous(memory_format=layout)
    return wider[:, 8 : 8 + c].copy_(x)


def crop_of_larger(x: Tensor, layout: torch.memory_format) -> Tensor:
    """The same map, as the inner pixels of a larger one."""
    n, c, h, w = x.shape
    larger = torch.full((n, c, h + 3, w + 3), torch.nan, dtype=x.dtype).contiguous(memory_format=layout)
    return larger[:, :, 1:-2, 2:-1].copy_(x)


@layouts
@pytest.mark.parametrize("place", [one_element_further, slice_of_channels, crop_of_larger], ids=lambda f: f.__name__)
@every_operator
def test_maps_within_larger_storages(operator: str, place: Callable, layout: torch.memory_format, ptx: Device) -> None:
    """Nothing around them is read, whatever the offset, and packs are not taken where they would be misaligned."""
    inputs = make_inputs(operator, "unaligned", torch.bfloat16, channels=8)
    agrees(operator, "unaligned", [place(x, layout) for x in inputs], torch.bfloat16)


@layouts
@pytest.mark.parametrize(("batch", "channels"), [(1, 5), (2, 8)], ids=["values beside packs", "two images"])
def test_maps_that_keep_their_size_are_copied(
    batch: int, channels: int, layout: torch.memory_format, ptx: Device
) -> None:
    """In packs, more of them than one block copies."""
    x = torch.randn(batch, channels, 41, 43, dtype=torch.bfloat16).contiguous(memory_format=layout).requires_grad_()
    y = ops.interp(x, (41, 43))
    (grad,) = torch.autograd.grad(y, x, y.detach())
    assert len(ptx.last.launches) == 1 and ptx.last.launches[0].launch.blocks > batch
    assert torch.equal(y, x) and torch.equal(grad, x)


@pytest.mark.parametrize("channels", [15, 21, 26])
def test_a_last_group_of_fewer_channels_than_threads(channels: int, ptx: Device) -> None:
    """In the merges' backward pass threads then lie idle. They must not store what others store."""
    sizes = [(9, 70), (7, 50), (5, 30)]
    scores = [torch.randn(1, channels, *size).contiguous(memory_format=torch.channels_last) for size in sizes]
    results = []
    for backend in ("ptx", "reference"):
        inputs = [score.requires_grad_() for score in scores]
        with ops.use_backend(backend):
            merged = ops.scale_average(inputs, size=sizes[0])
            results.append(torch.autograd.grad(merged, inputs, merged.detach().cos()))
    assert_close(*results, torch.float32)


@layouts
def test_a_last_output_that_rounding_moves_off_the_last_row(layout: torch.memory_format, ptx: Device) -> None:
    """Of 23 outputs of 14 rows the last lies at 12.999999: rows 12 and 13 are finished behind it."""
    sizes = [(23, 9), (14, 5), (12, 6)]
    results = []
    for backend in ("ptx", "reference"):
        torch.manual_seed(0)
        scores = [torch.randn(2, 7, *size).contiguous(memory_format=layout).requires_grad_() for size in sizes]
        logits = torch.randn(2, 3, *sizes[0]).contiguous(memory_format=layout).requires_grad_()
        with ops.use_backend(backend):
            merged, _ = ops.scale_merge(scores, logits, size=sizes[0])
            results.append(torch.autograd.grad(merged, [*scores, logits], merged.detach().cos()))
    assert_close(*results, torch.float32)


@pytest.mark.parametrize("kib", [100, 164], ids=["compute capability 8.6", "compute capability 8.0"])
@layouts
def test_backward_passes_leave_room_for_their_blocks(
    layout: torch.memory_format, kib: int, ptx: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kib`: shared memory of a multiprocessor. A block of each of two takes half of it, but for 1 KiB."""
    monkeypatch.setattr(shared_per_multiprocessor(ptx), "value", kib * 1024)
    sizes = [(40, 70), (30, 53), (20, 35)]
    scores = [torch.randn(1, 12, *size).contiguous(memory_format=layout) for size in sizes]
    logits = torch.randn(1, 3, *sizes[0]).contiguous(memory_format=layout)
    arguments = [torch.randn(1, 12, *sizes[0]), None, scores, logits, logits.softmax(1), None]
    computed = tensors_of(ptx.operator("scale_merge_backward", *arguments))
    assert all(ran.launch.shared_bytes <= (kib // 2 - 1) * 1024 for ran in ptx.last.launches)
    assert_close(computed, tensors_of(torch.ops.a2s.scale_merge_backward(*arguments)), torch.float32)


def shared_per_multiprocessor(device: Device) -> ctypes.c_int:
    return ctypes.c_int.in_dll(device.library, "shared_per_multiprocessor")


@layouts
@pytest.mark.parametrize("operator", ["scale_average", "scale_max", "scale_merge", "scale_merge_recalibrated"])
def test_gradients_in_the_other_layout(operator: str, layout: torch.memory_format, ptx: Device) -> None:
    function, _ = OPERATORS[operator]
    other = torch.contiguous_format if layout == torch.channels_last else torch.channels_last
    results = []
    for backend in ("ptx", "reference"):
        inputs = make_inputs(operator, "two-scales", torch.float32, channels=6)
        inputs = [x.contiguous(memory_format=layout).requires_grad_() for x in inputs]
        with ops.use_backend(backend):
            outputs = function(*inputs, size=GRIDS["two-scales"][0])
            merged = outputs[0] if isinstance(outputs, tuple) else outputs
            grad = merged.detach().cos().contiguous(memory_format=other)
            results.append(torch.autograd.grad(merged, inputs, grad))
    assert_close(*results, torch.float32)


@layouts
@every_operator
def test_expanded_gradients(operator: str, layout: torch.memory_format, ptx: Device) -> None:
    """As sum() and mean() over pixels pass back: strides of 0."""
    function, _ = OPERATORS[operator]
    size = GRIDS["two-scales"][0]
    results = []
    for backend in ("ptx", "reference"):
        inputs = make_inputs(operator, "two-scales", torch.float32, channels=4)
        inputs = [x.contiguous(memory_format=layout).requires_grad_() for x in inputs]
        with ops.use_backend(backend):
            outputs = function(*inputs, size=size)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            grads = [torch.arange(y.size(1), dtype=y.dtype)[None, :, None, None].expand_as(y) for y in outputs]
            used = inputs[-1:] if operator == "scale_softmax" else inputs
            results.append(torch.autograd.grad(outputs, used, grads))
    assert_close(*results, torch.float32)


@layouts
@pytest.mark.parametrize(("channels", "dtype"), [(5, torch.float64), (6, torch.bfloat16)], ids=["odd", "pairs"])
def test_merge_with_everything_at_once(
    channels: int, dtype: torch.dtype, layout: torch.memory_format, ptx: Device
) -> None:
    """Weights of another grid, a recalibration, and gradients of both results."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(channels, 9, 7), (channels, 4, 5), (channels, 2, 3), (3, 4, 3), (channels, 9, 7)]
    inputs = [torch.randn(2, *size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]
    grads = [torch.randn(2, c, 9, 7, generator=generator, dtype=torch.float64).to(dtype) for c in (channels, 3)]
    results = []
    for backend, computed in (("ptx", dtype), ("reference", torch.float64)):
        leaves = [x.to(computed).contiguous(memory_format=layout).requires_grad_() for x in inputs]
        with ops.use_backend(backend):
            outputs = ops.scale_merge(leaves[:3], leaves[3], (9, 7), recalibration=leaves[4])
            results.append([*outputs, *torch.autograd.grad(outputs, leaves, [x.to(computed) for x in grads])])
    assert_close(*[[x.detach() for x in result] for result in results], dtype)


@layouts
def test_weights_that_fill_no_whole_packs(layout: torch.memory_format, ptx: Device) -> None:
    """They precede the results of a tile in shared memory, which are stored as packs."""
    inputs = make_inputs("scale_merge", "one-scale", torch.float32)
    agrees("scale_merge", "one-scale", [x.contiguous(memory_format=layout) for x in inputs], torch.float32)


@layouts
def test_an_infinite_score_in_an_odd_number_of_channels(layout: torch.memory_format, ptx: Device) -> None:
    """A thread takes two channels at once. One that is not there must not count as infinity times 0."""
    scores = [torch.ones(1, 3, 2, 2).contiguous(memory_format=layout) for _ in range(2)]
    scores[0][:, :, 0, 0] = torch.inf
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)
    with ops.use_backend("ptx"):
        ops.scale_merge(scores, logits, (2, 2))[0].sum().backward()
    assert logits.grad[0, 1, 0, 0] == -torch.inf
    assert torch.isfinite(logits.grad[:, :, 0, 1:]).all() and torch.isfinite(logits.grad[:, :, 1]).all()


@pytest.mark.long
@every_operator
def test_gradcheck_at_a_small_size(operator: str, ptx: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pixels, because every element of the inputs is two runs of the operator."""
    small = ((3, 3), [(2, 2)]) if operator == "interp_shift_add" else ((3, 2), [(3, 2), (2, 3)])
    monkeypatch.setitem(GRIDS, "small", small)
    function, _ = OPERATORS[operator]
    inputs = [x.requires_grad_() for x in make_inputs(operator, "small", batch=1, channels=1)]
    assert torch.autograd.gradcheck(lambda *s: function(*s, size=small[0]), inputs)


@every_operator
def test_the_same_bits_whatever_order_blocks_run_in(operator: str, ptx: Device) -> None:
    inputs = make_inputs(operator, "unaligned", torch.float32, channels=4)
    first = outputs_and_gradients(operator, "unaligned", inputs)
    ptx.sample = lambda launch: range(launch.blocks - 1, -1, -1)
    try:
        again = outputs_and_gradients(operator, "unaligned", inputs)
    finally:
        ptx.sample = None
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


FAR = 2**31 + 8
"""Elements between two images or rows: more than 32 bits hold, of elements and of bytes."""


def far_apart(x: Tensor, axis: int) -> Tensor:
    """The same map with a huge stride along an axis. Only its own elements take up memory."""
    strides = list(x.stride())
    strides[axis] = FAR
    length = sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True)) + 1
    return torch.empty(length, dtype=x.dtype).as_strided(x.shape, strides).copy_(x)


@layouts
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["images", "channels", "rows"])
@every_operator
def test_strides_beyond_32_bits(operator: str, axis: int, layout: torch.memory_format, ptx: Device) -> None:
    if axis == 1 and layout == torch.channels_last:
        pytest.skip("channels_last maps have adjacent channels")
    grid = "two-scales" if axis != 2 else "tiny"
    inputs = make_inputs(operator, grid, torch.float16, channels=2)
    if axis == 2:  # two rows of the last scale, which can lie far apart
        inputs = [x.contiguous(memory_format=layout) for x in inputs]
        inputs = [far_apart(x, 2) if x.size(2) == 2 else x for x in inputs]
    else:
        inputs = [far_apart(x.contiguous(memory_format=layout), axis) if x.size(axis) == 2 else x for x in inputs]
    agrees(operator, grid, inputs, torch.float16)


@pytest.mark.long
@layouts
def test_results_of_more_than_2_31_elements(layout: torch.memory_format, ptx: Device) -> None:
    """Some blocks of such a launch; the offsets of a fifth of them pass 2^31."""
    channels, side = 160, 4097
    x = torch.randn(1, channels, 5, 5, dtype=torch.float16).contiguous(memory_format=layout)
    ptx.sample = spread_sample(10)
    try:
        large = ops.interp(x, (side, side))
    finally:
        ptx.sample = None
    assert large.numel() > 2**31 and large.is_contiguous(memory_format=layout)
    offset = torch.from_numpy(ptx.last.memory.written_in_this_launch(large))
    assert (offset > 2**31).sum() > 100
    if layout == torch.channels_last:
        c, y, x_out = offset % channels, offset // channels // side, offset // channels % side
    else:
        c, y, x_out = offset // side // side, offset // side % side, offset % side
    # 4097 pixels over 5: a step of 1/1024, exact in float32.
    low_y, low_x = (y // 1024).clamp(max=3), (x_out // 1024).clamp(max=3)
    ly, lx = y / 1024 - low_y, x_out / 1024 - low_x

    def corner(dy: int, dx: int) -> Tensor:
        return x[0, c, low_y + dy, low_x + dx].float()

    rows = [(1 - lx) * corner(dy, 0) + lx * corner(dy, 1) for dy in (0, 1)]
    expected = (1 - ly) * rows[0] + ly * rows[1]
    given = torch.as_strided(large, (large.numel(),), (1,))[offset].float()
    assert (given - expected).abs().max() < 2e-3


@layouts
def test_interp_concat_of_many_maps(layout: torch.memory_format, ptx: Device) -> None:
    """One launch for up to four maps of one layout, forward and backward; a map of one channel is NCHW."""
    maps = [torch.randn(2, c, 3 + c, 4).contiguous(memory_format=layout) for c in (4, 8, 4, 12, 1)]
    grad = torch.randn(2, 29, 5, 6).contiguous(memory_format=layout)
    results = []
    for backend in ("ptx", "reference"):
        leaves = [x.detach().requires_grad_() for x in maps]
        with ops.use_backend(backend):
            y = ops.interp_concat(leaves, (5, 6))
            forward = ptx.last
            results.append([y.detach(), *torch.autograd.grad(y, leaves, grad)])
        if backend == "ptx":
            assert len(forward.launches) == 2 and len(ptx.last.launches) == 2
    assert_close(*results, torch.float32)


def test_empty_batches_launch_nothing(ptx: Device) -> None:
    for scores in (make_scores("two-scales", batch=0), [x[:0] for x in make_scores("two-scales")]):
        ops.scale_average(scores, (9, 13))
        assert not ptx.last.launches
    weights, logits = scores[0].new_empty(0, 2, 9, 13), scores[0].new_empty(0, 2, 4, 4)
    merged = scores[0].new_empty(0, scores[0].size(1), 9, 13)
    ptx.operator("scale_merge_backward", merged, weights, scores[:2], logits, weights, None)
    assert not ptx.last.launches


@pytest.mark.slow
def test_every_kernel_runs(ptx: Device) -> None:
    """Each instance in the library is reached by some dtype, layout, number of scales and width of channels."""
    for grid in ("one-scale", "two-scales", "four-scales", "shrinking", "paper"):
        for operator in OPERATORS:
            for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
                for layout in LAYOUTS.values():
                    for channels in (3, 8):
                        inputs = make_inputs(operator, grid, dtype, 1, channels)
                        outputs_and_gradients(operator, grid, [x.contiguous(memory_format=layout) for x in inputs])
                        if operator == "interp":
                            ops.segment(inputs[0].contiguous(memory_format=layout), (9, 9))
    idle = {name for module in ptx.modules for name in module.entries} - set(ptx.programs)
    assert not idle, f"{len(idle)} kernels never ran, such as {sorted(idle)[:4]}"
