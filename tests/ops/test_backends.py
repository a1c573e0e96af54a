"""`use_backend` holds for its block in one thread or task; NaN scores give the same labels in every backend."""

import asyncio
import threading

import torch

from a2s_repro import ops
from a2s_repro.ops import _native


def test_other_threads_keep_their_backend() -> None:
    """An export traces on the reference beside a thread that serves on native operators."""
    seen: list[str] = []
    inside, done = threading.Event(), threading.Event()

    def exports() -> None:
        with ops.use_backend("reference"):
            inside.set()
            done.wait()
            seen.append(_native.backend())

    thread = threading.Thread(target=exports)
    thread.start()
    inside.wait()
    seen.append(_native.backend())
    with ops.use_backend("reference"):  # overlaps the other block, and ends before it
        done.set()
        thread.join()
    assert seen == ["native", "reference"]
    assert _native.backend() == "native"


def test_overlapping_blocks_of_tasks_leave_nothing_set() -> None:
    async def task(name: str, first: asyncio.Event, then: asyncio.Event) -> str:
        with ops.use_backend(name):
            first.set()
            await then.wait()
            return _native.backend()

    async def both() -> list[str]:
        events = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task("reference", *events), task("native", *reversed(events)))

    assert asyncio.run(both()) == ["reference", "native"]
    assert _native.backend() == "native"


def test_a_compiled_net_follows_the_backend_of_its_own_thread() -> None:
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list) -> torch.fx.GraphModule:
        graphs.append("native" if "a2s" in graph.code else "reference")
        return graph

    x = torch.randn(1, 2, 5, 5)
    compiled = torch.compile(lambda x: ops.interp(x, (9, 9)), fullgraph=True, backend=backend)
    compiled(x)
    with ops.use_backend("reference"):
        compiled(x)
        other = threading.Thread(target=compiled, args=(x,))
        other.start()
        other.join()
    compiled(x)
    assert graphs == ["native", "reference"]


def test_nan_scores_give_the_same_labels_in_every_backend() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 6, 5, 5, generator=generator)
    scores[torch.rand(scores.shape, generator=generator) < 0.2] = torch.nan
    for size in ((5, 5), (9, 9), (7, 4)):
        with ops.use_backend("reference"):
            expected = ops.segment(scores, size)
            exported = torch.export.export(_Tail(size), (scores,)).module()
        assert torch.equal(ops.segment(scores, size), expected)
        assert torch.equal(exported(scores), expected)


class _Tail(torch.nn.Module):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return ops.segment(scores, self.size)
