"""The operators as torch sees them: schemas, fake tensors, autograd, autocast, compilation and export."""

import pytest
import torch
from torch import Tensor

from a2s_repro import ops
from a2s_repro.ops import _native
from tests.backends import Backend
from tests.ops.test_operators import GRIDS, OPERATORS, make_inputs, make_logits, make_scores


def calls(namespace) -> dict[str, tuple]:
    """Every native operator with arguments of an ordinary call."""
    size = GRIDS["unaligned"][0]
    scores = [s.requires_grad_() for s in make_scores("unaligned", 2)]
    logits, coarse = make_logits("unaligned").requires_grad_(), make_logits("unaligned", (3, 4)).requires_grad_()
    merged, weights = (t.detach() for t in namespace.scale_merge(scores, logits, *size, None))
    _, coarse_weights = (t.detach() for t in namespace.scale_merge(scores, coarse, *size, None))
    _, winner = namespace.scale_max([s.detach() for s in scores], *size)
    plain = [s.detach() for s in scores]
    planes = make_scores("unaligned", 27)[0].requires_grad_()
    pixels = torch.randn(2, 9, 5, 6).contiguous(memory_format=torch.channels_last)
    points = torch.randn(16, 11, 9)  # of tiles 1 to 11, of 2 * 4 * 4
    return {
        "interp": (scores[0], *size),
        "interp_backward": (merged, 3, 4),
        "interp_concat": (scores, *size),
        "interp_concat_backward": (torch.cat([merged, merged, merged], 1), plain),
        "interp_shift_add": (planes, plain[0].new_zeros(2, 3, *size).requires_grad_()),
        "interp_shift_add_backward": (merged, 3, 4),
        "scale_softmax": (logits,),
        "scale_softmax_backward": (weights, weights),
        "scale_merge": (scores, logits, *size, None),
        "scale_merge(resized)": (scores, coarse, *size, None),
        "scale_merge(recalibrated)": (scores, logits, *size, merged.clone().requires_grad_()),
        "scale_merge_backward": (merged, None, plain, logits.detach(), weights, None),
        "scale_merge_backward(weights)": (merged, weights, plain, logits.detach(), weights, None),
        "scale_merge_backward(resized)": (merged, None, plain, coarse.detach(), coarse_weights, None),
        "scale_merge_backward(recalibrated)": (merged, None, plain, logits.detach(), weights, merged.clone()),
        "scale_average": (scores, *size, 0.33333),
        "scale_average_backward": (merged, plain, 0.33333),
        "scale_max": (scores, *size),
        "scale_max_backward": (merged, winner, plain),
        "segment": (plain[0], *size),
        "winograd_input": (pixels, 2, 1, True, points),
        "winograd_output": (points, torch.ones(9), 2, 1, True, pixels),
        "winograd_output_grad": (pixels, 2, 1, points),
    }


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "namespace"),
    [(call, space) for call in calls(torch.ops.a2s) for space in _native.namespaces_of(call.partition("(")[0])],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_opcheck(namespace: str, name: str, layout: torch.memory_format) -> None:
    """Schema, fake implementation (shapes, dtypes, strides), autograd registration and dynamic shapes agree."""

    def laid_out(value):
        if isinstance(value, list):
            return [laid_out(item) for item in value]
        if not isinstance(value, torch.Tensor) or value.dim() != 4 or name.startswith("winograd"):
            return value
        return value.detach().contiguous(memory_format=layout).requires_grad_(value.requires_grad)

    library = getattr(torch.ops, namespace)
    args = tuple(laid_out(a) for a in calls(library)[name])
    torch.library.opcheck(getattr(library, name.partition("(")[0]), args)


def test_every_operator_is_checked() -> None:
    """A schema added to csrc/library.cpp without a row above fails here."""
    registered = {n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("a2s::")}
    assert registered == {name.partition("(")[0] for name in calls(torch.ops.a2s)}


@pytest.mark.parametrize("operator", OPERATORS)
def test_compiles_forward_and_backward_without_graph_breaks(operator: str) -> None:
    """The results are bit-equal, because the compiled graph calls the same operators."""
    torch.compiler.reset()  # the limit on recompilations is one for all operators, which share this function

    def step(*inputs: Tensor) -> Tensor:
        outputs = OPERATORS[operator][0](*inputs, size=GRIDS["paper"][0])
        return sum((y**2).sum() for y in (outputs if isinstance(outputs, tuple) else [outputs]))

    inputs = [x.requires_grad_() for x in make_inputs(operator, "paper", torch.float32)]
    used = inputs[-1:] if operator == "scale_softmax" else inputs
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    given, expected = (torch.autograd.grad(f(*inputs), used) for f in (compiled, step))
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))


def merge_step(a: Tensor, b: Tensor, logits: Tensor) -> Tensor:
    """Several operators with ordinary ones between them."""
    size = logits.shape[2:]
    merged, weights = ops.scale_merge([a, b], logits * 2)
    best = ops.scale_max([merged.relu(), ops.scale_average([a, b], size)], size)
    return best * weights.amax(1, keepdim=True)


def merge_inputs(side: int, batch: int) -> list[Tensor]:
    """Every size differs from the others, or one that is equal by chance would be taken for the same."""
    half = (side + 1) // 2
    sizes = (3, side, side + 2), (3, half, half + 1), (2, side, side + 2)
    return [torch.randn(batch, *size, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_one_compilation_serves_all_shapes(compiler: str) -> None:
    compiled = torch.compile(merge_step, fullgraph=True, dynamic=True, backend=compiler)

    def check(inputs: list[Tensor]) -> None:
        given, expected = (torch.autograd.grad(f(*inputs).sum(), inputs) for f in (compiled, merge_step))
        for a, b in zip(given, expected, strict=True):
            torch.testing.assert_close(a, b)

    check(merge_inputs(9, batch=4))
    with torch.compiler.set_stance("fail_on_recompile"):
        for side, batch in ((11, 4), (17, 7), (8, 5)):
            check(merge_inputs(side, batch))


def test_export_keeps_the_operators_and_the_freedom_of_shapes() -> None:
    class Merge(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
            merged, weights = ops.scale_merge([a, b], logits)
            return ops.segment(merged, (33, 33)), weights

    batch, free = torch.export.Dim("batch"), torch.export.Dim.DYNAMIC
    shape = {0: batch, 2: free, 3: free}
    args = tuple(x.detach() for x in merge_inputs(9, batch=4))
    program = torch.export.export(Merge(), args, dynamic_shapes=(shape, shape, shape))
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"a2s.scale_merge.default", "a2s.segment.default"} <= targets
    for inputs in (args, [x.detach() for x in merge_inputs(17, batch=3)]):
        for given, expected in zip(program.module()(*inputs), Merge()(*inputs), strict=True):
            assert torch.equal(given, expected)


BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("dtypes", "result"),
    [((BFLOAT16, BFLOAT16), BFLOAT16), ((FLOAT32, BFLOAT16), FLOAT32), ((FLOAT32, FLOAT32), FLOAT32)],
    ids=["low", "mixed", "full"],
)
@pytest.mark.parametrize("operator", ["interp_concat", "scale_average", "scale_max", "scale_merge"])
def test_autocast_brings_maps_to_their_widest_dtype(operator: str, dtypes: tuple, result: torch.dtype) -> None:
    """Autocast treats maps as it does the inputs of torch.cat: float32 is not cast down. A gradient has its map's
    dtype."""
    a, b, logits = (x.detach() for x in merge_inputs(5, batch=2))
    inputs = [a.to(dtypes[0]), b.to(dtypes[1]), *([logits.to(dtypes[1])] if operator == "scale_merge" else [])]
    inputs = [x.requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = OPERATORS[operator][0](*inputs, size=(5, 7))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert all(y.dtype == result for y in outputs)
    grads = torch.autograd.grad(sum(y.sum() for y in outputs), inputs)
    assert all(grad.dtype == x.dtype for grad, x in zip(grads, inputs, strict=True))


def test_autocast_leaves_operators_of_one_map_in_its_dtype(backend: Backend) -> None:
    x = torch.randn(1, 2, 5, 5, device=backend.device)
    with torch.autocast(backend.device, torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            assert ops.interp(x.to(dtype), (3, 3)).dtype == ops.scale_softmax(x.to(dtype)).dtype == dtype


def test_mixed_dtypes_without_autocast_are_refused(backend: Backend) -> None:
    scores = [torch.randn(1, 2, 5, 5, device=backend.device), torch.randn(1, 2, 3, 3, device=backend.device).bfloat16()]
    with pytest.raises(ValueError, match="dtype"):
        ops.scale_merge(scores, torch.randn(1, 2, 5, 5, device=backend.device))


def test_native_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The checks in C++ guard direct calls of torch.ops too."""
    maps = torch.zeros(1, 2, 3, 3)
    pixels = maps.contiguous(memory_format=torch.channels_last)
    for call in (
        lambda: torch.ops.a2s.interp(maps[0], 3, 3),
        lambda: torch.ops.a2s.interp(maps, 0, 3),
        lambda: torch.ops.a2s.interp_shift_add(maps, maps),
        lambda: torch.ops.a2s.interp_shift_add_backward(maps[0], 3, 3),
        lambda: torch.ops.a2s.scale_merge([maps] * 5, torch.zeros(1, 5, 3, 3), 3, 3, None),
        lambda: torch.ops.a2s.scale_merge([maps, maps], maps[:, :1], 3, 3, None),
        lambda: torch.ops.a2s.scale_merge([maps, maps], maps, 3, 3, maps[:, :, :2]),
        lambda: torch.ops.a2s.scale_merge([maps, maps.double()], maps, 3, 3, None),
        lambda: torch.ops.a2s.scale_merge_backward(maps, None, [maps, maps], maps, maps[:, :, :2], None),
        lambda: torch.ops.a2s.scale_max_backward(maps, maps, [maps, maps]),
        lambda: torch.ops.a2s.winograd_input(maps, 1, 0, False, torch.zeros(16, 4, 2)),
        lambda: torch.ops.a2s.winograd_input(pixels, 0, 0, False, torch.zeros(16, 4, 2)),
        lambda: torch.ops.a2s.winograd_input(pixels, 1, 0, False, torch.zeros(16, 4, 3)),
        lambda: torch.ops.a2s.winograd_output_grad(pixels, 1, 1, torch.zeros(16, 4, 2)),
        lambda: torch.ops.a2s.winograd_output(torch.zeros(16, 4, 2), torch.zeros(3), 1, 0, False, pixels),
        lambda: torch.ops.a2s.winograd_output(torch.zeros(16, 5, 2), None, 1, 0, False, pixels),
    ):
        with pytest.raises(RuntimeError, match=r"^a2s::\w+: .*\.$"):
            call()
