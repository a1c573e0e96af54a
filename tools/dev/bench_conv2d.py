"""Measures the trunk's 3x3 convolutions on the CPU, in float32, against torch's own: time, and distance from the exact.

`ours` is what the nets run (`a2s_repro/ops/conv2d.py`): Winograd's algorithm where it pays, else torch's convolution,
with weight gradients of its own. Both run in turns in one process on channels_last maps, forward and with all three
gradients. The exact result is torch's in float64.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from a2s_repro import ops
from a2s_repro.bench.provenance import provenance
from a2s_repro.bench.timing import paired, spread, warm_memory
from a2s_repro.commands.options import positive
from a2s_repro.commands.run import run
from a2s_repro.models import DeepLabLargeFOV
from a2s_repro.models.deeplab import TRUNK
from a2s_repro.ops import winograd
from a2s_repro.ops.conv2d import conv2d
from a2s_repro.runtime.progress import Progress

from _options import add_results_options, keep_results

STRIDES = {"pool1": 1, "pool2": 2, "pool3": 4, "pool4": 8, "pool5": 8}
"""Pixels of the image per cell of the maps before each pool."""


class Layer(NamedTuple):
    name: str
    channels: int
    filters: int
    stride: int
    dilation: int


def layers() -> list[Layer]:
    """The 3x3 convolutions of maps, one for all of the same shape, and att_conv1's of the features of scale 1."""
    with torch.device("meta"):
        net = DeepLabLargeFOV(21)
    strides = {name: STRIDES[pool] for pool, names in TRUNK.items() for name in names} | {"fc6": 8}
    by_shape: dict[tuple, Layer] = {}
    for name, layer in net.named_children():
        if name in strides and layer.in_channels > 3:
            shape = (layer.in_channels, layer.out_channels, strides[name], layer.dilation[0])
            by_shape.setdefault(shape, Layer(name, *shape))
    return [*by_shape.values(), Layer("att_conv1", 1024, 512, 8, 1)]


def measure(layer: Layer, arguments: argparse.Namespace) -> list[dict]:
    """A row forward, and one with the gradients."""
    side = ops.interp_size(arguments.crop, shrink=layer.stride)
    generator = torch.Generator().manual_seed(arguments.seed)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).contiguous(memory_format=torch.channels_last)

    x = tensor(arguments.batch_size, layer.channels, side, side).relu_().requires_grad_()
    weight = (tensor(layer.filters, layer.channels, 3, 3) * (2 / (9 * layer.channels)) ** 0.5).requires_grad_()
    bias = torch.randn(layer.filters, generator=generator).requires_grad_()
    grad = tensor(arguments.batch_size, layer.filters, side, side)

    def torchs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=layer.dilation, dilation=layer.dilation)

    versions = {"ours": lambda *inputs: conv2d(*inputs, layer.dilation), "torch": torchs}

    def forward(version: Callable, *inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [version(*inputs)]

    def both(version: Callable, *inputs: Tensor) -> list[Tensor]:
        result = version(*inputs)
        return [result.detach(), *torch.autograd.grad(result, inputs, grad.to(result.dtype))]

    exact = both(torchs, *(y.detach().double().requires_grad_() for y in (x, weight, bias)))
    rows = []
    for title, work in (("forward", forward), ("forward+backward", both)):
        calls = {name: lambda _, f=version, work=work: work(f, x, weight, bias) for name, version in versions.items()}
        times = paired(calls, 1, torch.device("cpu"), budget=arguments.seconds)
        rows.append(
            {
                **layer._asdict(),
                "side": side,
                "batch_size": arguments.batch_size,
                "winograd": winograd.pays(x, weight, layer.dilation),
                "pass": title,
                "seconds": {name: spread(values) for name, values in times.items()},
                "ratio": spread([theirs / mine for theirs, mine in zip(times["torch"], times["ours"], strict=True)]),
                "deviation": {
                    name: max(
                        ((given - true).abs().max() / true.abs().max()).item()
                        for given, true in zip(call(0), exact, strict=False)
                    )
                    for name, call in calls.items()
                },
            }
        )
    return rows


def described(row: dict) -> str:
    seconds, deviation = row["seconds"], row["deviation"]
    return (
        f"{row['name']:10} {row['channels']:5} -> {row['filters']:<5} {row['side']:4}  {row['pass']:17}"
        f"{1e3 * seconds['ours']['median']:8.1f} ms  torch x{row['ratio']['median']:.2f}  "
        f"deviation {deviation['ours']:.1e}, torch {deviation['torch']:.1e}{'  (Winograd)' if row['winograd'] else ''}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/dev/bench_conv2d.py --crop 513 --layers conv4_2 fc6",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = layers()
    names = [layer.name for layer in known]
    parser.add_argument("--layers", nargs="+", choices=names, metavar="NAME", help=f"only these of {', '.join(names)}")
    parser.add_argument("--crop", type=positive, default=321, help="side of the image (default %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=1, help="(default %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="of each row, 3 to 25 rounds (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of maps and weights (default %(default)s)")
    add_results_options(parser, "conv2d")
    arguments = parser.parse_args()

    facts = provenance()
    warm_memory()
    rows = []
    chosen = [layer for layer in known if layer.name in (arguments.layers or names)]
    for layer in Progress(chosen, "convolutions", "layer"):
        rows += measure(layer, arguments)
        for row in rows[-2:]:
            tqdm.write(described(row))
    keep_results(arguments, "conv2d", "cpu", {"provenance": facts, "crop": arguments.crop, "rows": rows})
    return 0


if __name__ == "__main__":
    run(main)
