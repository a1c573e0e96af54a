"""Measures every fused operator against plain PyTorch: time, peak memory and share of the machine's copy bandwidth.

Each operator runs forward, and forward with backward, beside the same composed of PyTorch's own operations (eager), for
merging and segmenting also beside torch.compile of that. Runs are paired in one process and rotate over inputs that no
cache still holds. On a GPU, `device` is the time of captured CUDA graphs, without the host's part.
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from a2s_repro import ops
from a2s_repro.bench.gpu_report import write_line
from a2s_repro.bench.provenance import provenance
from a2s_repro.bench.timing import copy_bandwidth, graph_time, memory_of_call, paired, rotation, spread, warm_memory
from a2s_repro.commands.options import add_device_option
from a2s_repro.commands.run import run
from a2s_repro.runtime.devices import usable_device
from a2s_repro.runtime.precision import multiplies_bfloat16
from a2s_repro.runtime.progress import Progress

from _options import add_results_options, keep_results

GRIDS = {41: (41, 31, 21), 65: (65, 49, 33), 129: (129, 97, 65), 513: (513, 385, 257)}
"""The score maps' sides at scales 1, 0.75 and 0.5, by the merged map's."""


def resized(x: Tensor, size: int) -> Tensor:
    if x.size(2) == size:
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=True)


def eager_merge(size: int, *inputs: Tensor) -> Tensor:
    *scores, logits = inputs
    weights = resized(logits.softmax(1), size)
    return sum(weights[:, s : s + 1] * resized(score, size) for s, score in enumerate(scores))


def eager_recalibrated(size: int, *inputs: Tensor) -> Tensor:
    return eager_merge(size, *inputs[:-1]) * inputs[-1]


def eager_average(size: int, *scores: Tensor) -> Tensor:
    return sum(resized(score, size) for score in scores) * (1 / len(scores))


def eager_max(size: int, *scores: Tensor) -> Tensor:
    largest = resized(scores[0], size)
    for score in scores[1:]:
        largest = torch.maximum(largest, resized(score, size))
    return largest


def eager_segment(size: int, scores: Tensor) -> Tensor:
    return resized(scores, size).argmax(1).to(torch.uint8)


def eager_concat(size: int, *features: Tensor) -> Tensor:
    return torch.cat([resized(feature, size) for feature in features], 1)


def eager_shift_add(size: int, planes: Tensor, base: Tensor) -> Tensor:
    taps = F.pad(resized(planes, size), (1, 1, 1, 1)).split(base.size(1), 1)
    return base + sum(tap[:, :, i // 3 : i // 3 + size, i % 3 : i % 3 + size] for i, tap in enumerate(taps))


def eager_concat_conv2d(size: int, *inputs: Tensor) -> Tensor:
    *features, weight = inputs
    return F.conv2d(eager_concat(size, *features), weight, padding=1)


OPERATORS: dict[str, tuple[Callable, Callable]] = {
    "scale_merge": (lambda size, *x: ops.scale_merge(x[:-1], x[-1], (size, size))[0], eager_merge),
    "scale_merge recalibrated": (
        lambda size, *x: ops.scale_merge(x[:-2], x[-2], (size, size), x[-1])[0],
        eager_recalibrated,
    ),
    "scale_average": (lambda size, *x: ops.scale_average(x, (size, size)), eager_average),
    "scale_max": (lambda size, *x: ops.scale_max(x, (size, size)), eager_max),
    "scale_softmax": (lambda size, x: ops.scale_softmax(x), lambda size, x: x.softmax(1)),
    "segment": (lambda size, x: ops.segment(x, (size, size)), eager_segment),
    "interp": (lambda size, x: ops.interp(x, (size, size)), lambda size, x: resized(x, size)),
    "interp_concat": (lambda size, *x: ops.interp_concat(x, (size, size)), eager_concat),
    "interp_shift_add": (lambda size, planes, base: ops.interp_shift_add(planes, base), eager_shift_add),
    "interp_concat_conv2d": (
        lambda size, *x: ops.interp_concat_conv2d(x[:-1], x[-1], None, (size, size)),
        eager_concat_conv2d,
    ),
}
COMPILED = ("scale_merge", "segment")


@dataclasses.dataclass(frozen=True)
class Case:
    operator: str
    batch: int
    channels: int
    maps: tuple[int, ...]
    """Sides of the score maps or features."""
    size: int
    logits: int | None = None
    """Side of the logits' map, if the operator takes logits."""

    def shapes(self) -> list[tuple[int, ...]]:
        taps = 9 if self.operator == "interp_shift_add" else 1
        shapes = [(self.batch, taps * self.channels, side, side) for side in self.maps]
        if self.logits:
            shapes.append((self.batch, len(self.maps), self.logits, self.logits))
        if self.operator in ("scale_merge recalibrated", "interp_shift_add"):
            shapes.append((self.batch, self.channels, self.size, self.size))
        if self.operator == "interp_concat_conv2d":
            shapes.append((self.channels // 2, self.channels * len(self.maps), 3, 3))
        return shapes


TEN = [
    (Case("interp", 8, 21, (65,), 513), "nchw"),
    (Case("scale_merge", 8, 150, GRIDS[129], 129, 129), "nchw"),
    (Case("scale_merge", 8, 150, GRIDS[129], 129, 129), "channels_last"),
    (Case("scale_merge", 10, 21, GRIDS[41], 41, 41), "channels_last"),
    (Case("segment", 8, 21, (65,), 513), "nchw"),
]
"""Of each the float32 and bfloat16 row, forward and backward together where it has a backward: the ten that matter."""


def cases(quick: bool) -> list[Case]:
    merges = [(10, 21, 41), (1, 21, 65), (8, 21, 65), (1, 150, 129), (8, 150, 129)]
    if not quick:
        merges += [(1, 150, 65), (8, 150, 65), (1, 21, 129), (8, 21, 129)]
    listed = [Case("scale_merge", n, c, GRIDS[size], size, size) for n, c, size in merges]
    listed.append(Case("scale_merge", 8, 21, GRIDS[513], 513, 65))
    for n, c, size in merges[:1] + merges[2:3] + merges[4:5]:
        listed.append(Case("scale_merge recalibrated", n, c, GRIDS[size], size, size))
        listed.append(Case("scale_average", n, c, GRIDS[size], size))
        listed.append(Case("scale_max", n, c, GRIDS[size], size))
    listed.append(Case("scale_softmax", 8, 3, (65,), 65))
    segments = [(1, 21, 65, 513), (8, 21, 65, 513), (1, 150, 65, 513), (1, 150, 129, 1025)]
    listed += [Case("segment", n, c, (side,), size) for n, c, side, size in segments]
    listed.append(Case("interp", 3, 3, (321,), 241))
    listed.append(Case("interp", 8, 21, (65,), 513))
    listed += [Case("interp", 10, 1024, (side,), 41) for side in (31, 21)]
    listed.append(Case("interp_concat", 10, 1024, (41, 31, 21), 41))
    listed += [
        Case("interp_shift_add", 1, 512, (side,), size) for side, size in ((31, 41), (21, 41), (49, 65), (33, 65))
    ]
    listed.append(Case("interp_concat_conv2d", 1, 1024, (41, 31, 21), 41))
    return listed


def measure(
    case: Case, backward: bool, dtype: torch.dtype, layout: str, device: torch.device, arguments: argparse.Namespace
) -> dict:
    memory_format = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
    generator = torch.Generator(device).manual_seed(arguments.seed)

    def tensor(shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=generator, device=device)
        return values.to(dtype).contiguous(memory_format=memory_format).requires_grad_(backward)

    fused, eager = OPERATORS[case.operator]
    versions = {"fused": fused, "eager": eager}
    if case.operator in COMPILED and layout == "nchw" and dtype == torch.float32 and not arguments.no_compile:
        torch.compiler.reset()
        versions["compiled"] = torch.compile(eager, dynamic=False)

    first = [tensor(shape) for shape in case.shapes()]
    with torch.no_grad():
        output = fused(case.size, *first)
    inputs_bytes = sum(x.numel() * x.element_size() for x in first)
    output_bytes = output.numel() * output.element_size()
    weights_bytes = case.batch * len(case.maps) * case.size**2 * output.element_size() if case.logits else 0
    # Forward: read the inputs, write the results. Backward: read gradient, inputs and weights, write their gradients.
    moved = inputs_bytes + output_bytes + weights_bytes
    if backward:
        moved += output_bytes + inputs_bytes + weights_bytes + inputs_bytes
    sets = rotation(moved)
    inputs = [first] + [[x.detach().clone().requires_grad_(backward) for x in first] for _ in range(sets - 1)]
    grad = torch.randn_like(output) if backward else None

    def call(version: Callable) -> Callable[[int], object]:
        def forward(i: int) -> object:
            with torch.no_grad():
                return version(case.size, *inputs[i])

        def both(i: int) -> object:
            return torch.autograd.grad(version(case.size, *inputs[i]), inputs[i], grad)

        return both if backward else forward

    calls = {name: call(version) for name, version in versions.items()}
    times = paired(calls, sets, device, budget=0.6 if arguments.cases == "all" else 0.3)
    row = {
        "operator": case.operator,
        "pass": "forward+backward" if backward else "forward",
        "dtype": str(dtype).removeprefix("torch."),
        "layout": layout,
        "maps": [list(shape) for shape in case.shapes()],
        "size": case.size,
        "floor_bytes": moved,
        "result_bytes": (output_bytes + weights_bytes) + (inputs_bytes if backward else 0),
        "seconds": {name: spread(values) for name, values in times.items()},
        "ratio": {
            name: spread([theirs / ours for theirs, ours in zip(times[name], times["fused"], strict=True)])
            for name in times
            if name != "fused"
        },
        "peak_bytes": {name: memory_of_call(call, device) for name, call in calls.items() if name != "compiled"},
    }
    if device.type == "cuda":
        row["device_seconds"] = {name: graph_time(function, sets) for name, function in calls.items()}
    return row


def described(row: dict, bandwidth: float) -> str:
    seconds = row.get("device_seconds") or {name: value["median"] for name, value in row["seconds"].items()}
    ratios = " ".join(f"{name} x{seconds[name] / seconds['fused']:.2f}" for name in seconds if name != "fused")
    share = row["floor_bytes"] / seconds["fused"] / bandwidth
    maps = "+".join("x".join(map(str, shape)) for shape in row["maps"][:1])
    return (
        f"{row['operator']:24} {row['pass']:16} {row['dtype']:8} {row['layout']:13} {maps:>16} -> {row['size']:<5}"
        f"{seconds['fused'] * 1e3:9.3f} ms  {ratios:30} {100 * share:4.0f} % of copy"
    )


def chosen(arguments: argparse.Namespace, device: torch.device) -> list[tuple[Case, bool, str, str]]:
    """Case, whether with backward, dtype and layout of every row to measure."""
    if arguments.cases == "ten":
        rows = [(case, case.operator != "segment", dtype, layout) for case, layout in TEN for dtype in arguments.dtypes]
    else:
        rows = [
            (case, backward, dtype, layout)
            for case in cases(arguments.cases == "quick")
            for dtype in arguments.dtypes
            for layout in arguments.layouts
            for backward in ([False] if case.operator == "segment" else [False, True])
        ]
    slow = device.type == "cpu" and not multiplies_bfloat16()  # convolutions in bfloat16
    return [
        (case, backward, dtype, layout)
        for case, backward, dtype, layout in rows
        if (not arguments.operators or case.operator in arguments.operators)
        and not (slow and case.operator == "interp_concat_conv2d" and dtype == "bfloat16")
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/dev/bench_kernels.py --device cuda --out benchmarks/results --write-docs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_device_option(parser)
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, metavar="NAME", help="only these")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--layouts", nargs="+", choices=("nchw", "channels_last"), default=["nchw", "channels_last"])
    parser.add_argument(
        "--cases",
        choices=("all", "quick", "ten"),
        default="all",
        help="quick: fewer sizes and rounds; ten: the ten rows that matter",
    )
    parser.add_argument("--seconds", type=float, default=math.inf, metavar="S", help="start no case after S seconds")
    parser.add_argument("--log", type=Path, metavar="FILE", help="append each row to FILE, a JSON line, once measured")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default 0)")
    add_results_options(parser, "kernels")
    arguments = parser.parse_args()
    device = usable_device(arguments.device)
    torch.manual_seed(arguments.seed)
    started = time.monotonic()

    facts = provenance()
    warm_memory()
    bandwidth = copy_bandwidth(device)
    tqdm.write(f"{facts['gpu'] if device.type == 'cuda' else facts['cpu']}: copies {bandwidth / 1e9:.1f} GB/s")
    rows, cases = [], chosen(arguments, device)
    for case, backward, dtype, layout in Progress(cases, "kernels", "case"):
        if time.monotonic() - started > arguments.seconds:
            tqdm.write(f"stopped after {arguments.seconds:.0f} s: {len(cases) - len(rows)} cases are left out.")
            break
        rows.append(measure(case, backward, getattr(torch, dtype), layout, device, arguments))
        tqdm.write(described(rows[-1], bandwidth))
        if arguments.log:
            write_line(arguments.log, {"kernel": rows[-1], "copy_bandwidth": bandwidth})
    results = {"provenance": facts, "copy_bandwidth": bandwidth, "rows": rows}
    keep_results(arguments, "kernels", device.type, results)
    return 0


if __name__ == "__main__":
    run(main)
