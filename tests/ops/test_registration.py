"""The operators as torch sees them: schemas, fake tensors, autograd, autocast, compilation and export."""

import pytest
import torch

from a2s_repro import ops
from a2s_repro.ops import _native
from tests.ops.test_operators import GRIDS, OPERATORS, make_inputs, make_logits, make_scores


def calls(namespace) -> dict[str, tuple]:
    """Every native operator with arguments of an ordinary call."""
    size = GRIDS["unaligned"][0]
    scores = [s.requires_grad_() for s in make_scores("unaligned", 2)]
    logits, coarse = make_logits("unaligned").requires_grad_(), make_logits("unaligned", (3, 4)).requires_grad_()
    merged, weights = (t.detach() for t in namespace.scale_merge(scores, logits, *size))
    _, coarse_weights = (t.detach() for t in namespace.scale_merge(scores, coarse, *size))
    _, winner = namespace.scale_max([s.detach() for s in scores], *size)
    plain = [s.detach() for s in scores]
    return {
        "interp": (scores[0], *size),
        "interp_backward": (merged, 3, 4),
        "interp_concat": (scores, *size),
        "scale_softmax": (logits,),
        "scale_softmax_backward": (weights, weights),
        "scale_merge": (scores, logits, *size),
        "scale_merge(resized)": (scores, coarse, *size),
        "scale_merge_backward": (merged, None, plain, logits.detach(), weights),
        "scale_merge_backward(weights)": (merged, weights, plain, logits.detach(), weights),
        "scale_merge_backward(resized)": (merged, None, plain, coarse.detach(), coarse_weights),
        "scale_average": (scores, *size, 0.33333),
        "scale_max": (scores, *size),
        "scale_max_backward": (merged, winner, plain),
        "segment": (plain[0], *size),
    }


@pytest.mark.parametrize("name", calls(torch.ops.a2s))
@pytest.mark.parametrize("namespace", _native.NAMESPACES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_opcheck(namespace: str, name: str, layout: torch.memory_format) -> None:
    """Schema, fake implementation (shapes, dtypes, strides), autograd registration and dynamic shapes agree."""

    def laid_out(value):
        if isinstance(value, list):
            return [laid_out(item) for item in value]
        if not isinstance(value, torch.Tensor):
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
def test_double_backward_is_refused_by_name(operator: str) -> None:
    inputs = [x.requires_grad_() for x in make_inputs(operator, "two-scales")]
    outputs = OPERATORS[operator][0](*inputs, size=GRIDS["two-scales"][0])
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((y**2).sum() for y in outputs)
    used = inputs[-1:] if operator == "scale_softmax" else inputs
    first = torch.autograd.grad(total, used, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        sum((g**2).sum() for g in first).backward()


@pytest.mark.parametrize("operator", OPERATORS)
def test_compiles_without_graph_breaks(operator: str) -> None:
    function, size = OPERATORS[operator][0], GRIDS["paper"][0]
    compiled = torch.compile(lambda *s: function(*s, size=size), fullgraph=True, backend="aot_eager")
    inputs = [x.requires_grad_() for x in make_inputs(operator, "paper", torch.float32)]
    torch.testing.assert_close(compiled(*inputs), function(*inputs, size=size), rtol=0, atol=0)


def test_dynamic_shapes_compile_once() -> None:
    def merge(a, b, logits):
        return ops.scale_merge([a, b], logits)[0]

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(merge, fullgraph=True, dynamic=True, backend=counter)
    for side in (9, 11, 17):
        half = (side + 1) // 2
        args = torch.randn(2, 3, side, side + 2), torch.randn(2, 3, half, half + 1), torch.randn(2, 2, side, side + 2)
        torch.testing.assert_close(compiled(*args), merge(*args), rtol=0, atol=0)
    assert counter.frame_count == 1


def test_export_keeps_the_operators() -> None:
    class Merge(torch.nn.Module):
        def forward(self, a, b, logits):
            merged, weights = ops.scale_merge([a, b], logits)
            return ops.segment(merged, (33, 33)), weights

    args = torch.randn(1, 3, 9, 9), torch.randn(1, 3, 5, 5), torch.randn(1, 2, 9, 9)
    program = torch.export.export(Merge(), args)
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"a2s.scale_merge.default", "a2s.segment.default"} <= targets
    for given, expected in zip(program.module()(*args), Merge()(*args), strict=True):
        assert torch.equal(given, expected)


@pytest.mark.parametrize("backend", ["native", "emulated"])
def test_autocast_brings_mixed_maps_to_the_widest_dtype(backend: str) -> None:
    scores = [torch.randn(1, 2, 5, 5), torch.randn(1, 2, 3, 3).bfloat16()]
    logits = torch.randn(1, 2, 5, 5).bfloat16()
    with ops.use_backend(backend):
        with torch.autocast("cpu", torch.bfloat16):
            merged, weights = ops.scale_merge(scores, logits)
            assert merged.dtype == weights.dtype == torch.float32
            assert ops.interp_concat([s.bfloat16() for s in scores], (5, 5)).dtype == torch.bfloat16
        with pytest.raises(ValueError, match="dtype"):
            ops.scale_merge(scores, logits)


def test_native_operators_refuse_what_would_read_out_of_bounds() -> None:
    """The checks in C++ guard direct calls of torch.ops too."""
    maps = torch.zeros(1, 2, 3, 3)
    for call in (
        lambda: torch.ops.a2s.interp(maps[0], 3, 3),
        lambda: torch.ops.a2s.interp(maps, 0, 3),
        lambda: torch.ops.a2s.scale_merge([maps] * 5, torch.zeros(1, 5, 3, 3), 3, 3),
        lambda: torch.ops.a2s.scale_merge([maps, maps], maps[:, :1], 3, 3),
        lambda: torch.ops.a2s.scale_merge([maps, maps.double()], maps, 3, 3),
        lambda: torch.ops.a2s.scale_merge_backward(maps, None, [maps, maps], maps, maps[:, :, :2]),
        lambda: torch.ops.a2s.scale_max_backward(maps, maps, [maps, maps]),
    ):
        with pytest.raises(RuntimeError, match=r"^a2s::\w+: .*\.$"):
            call()
