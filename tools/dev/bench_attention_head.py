"""Measures the attention head's first layer: the 3x3 convolution over the resized features of all scales.

`fused` is the layer as the nets run it (`ops.interp_concat_conv2d`), `concatenated` its definition: features resized
and concatenated (`ops.interp_concat`), then the convolution. Both run in turns in one process.
docs/attention_head.md has the derivation and what was measured.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from a2s_repro import ops
from a2s_repro.bench.timing import memory_of_call, paired, spread
from a2s_repro.commands.options import positive
from a2s_repro.commands.run import run
from a2s_repro.models.share_net import GRID_STEP, RESAMPLING
from a2s_repro.runtime.devices import usable_device


def concatenated(features: list[Tensor], weight: Tensor, bias: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.conv2d(ops.interp_concat(features, grid), weight, bias, padding=1)


FORMS = {"concatenated": concatenated, "fused": ops.interp_concat_conv2d}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/dev/bench_attention_head.py --crop 513 --scales 1 0.75 0.5 --batch-size 1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--crop", type=positive, default=321, help="side of the image (default %(default)s)")
    parser.add_argument("--scales", type=float, nargs="+", choices=RESAMPLING, default=[1, 0.75, 0.5])
    parser.add_argument("--batch-size", type=positive, default=1, help="(default %(default)s)")
    parser.add_argument("--features", type=positive, default=1024, help="channels of each scale (default %(default)s)")
    parser.add_argument("--filters", type=positive, default=512, help="(default %(default)s)")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=10, help="of each pass, 25 turns at most (default %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    arguments = parser.parse_args()

    device = usable_device(arguments.device)
    torch.manual_seed(arguments.seed)
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
    n, channels, filters, scales = arguments.batch_size, arguments.features, arguments.filters, arguments.scales

    def tensor(*shape: int) -> Tensor:
        values = torch.randn(*shape, device=device).to(getattr(torch, arguments.dtype))
        return values.contiguous(memory_format=layout) if values.dim() == 4 else values

    side_at = {
        scale: ops.interp_size(ops.interp_size(arguments.crop, **RESAMPLING[scale]), shrink=GRID_STEP[1])
        for scale in (1, *scales)
    }
    grid = (side_at[1], side_at[1])
    features = [tensor(n, channels, side_at[scale], side_at[scale]).relu_() for scale in scales]
    inputs = *features, 0.005 * tensor(filters, channels * len(features), 3, 3), 0.1 * tensor(filters)
    *features, weight, bias = inputs = [x.requires_grad_() for x in inputs]
    grad = tensor(n, filters, *grid)

    def forward(name: str) -> list[Tensor]:
        with torch.no_grad():
            return [FORMS[name](features, weight, bias, grid)]

    def forward_and_backward(name: str) -> list[Tensor]:
        result = FORMS[name](features, weight, bias, grid)
        return [result.detach(), *torch.autograd.grad(result, inputs, grad)]

    sides = " ".join(str(side_at[scale]) for scale in scales)
    print(f"{n} x {channels} features of sides {sides}, {filters} filters, {arguments.dtype}, {layout}")
    for title, work in (("forward", forward), ("forward + backward", forward_and_backward)):
        calls = {name: lambda _, name=name, work=work: work(name) for name in FORMS}
        times = paired(calls, 1, device, budget=arguments.seconds)
        for name, values in times.items():
            ratio = spread([mine / first for mine, first in zip(values, times["concatenated"], strict=True)])
            mebibytes = memory_of_call(calls[name], device) / 2**20
            print(
                f"{title}, {name}: {1e3 * spread(values)['median']:.1f} ms, {ratio['median']:.2f} of concatenated "
                f"({ratio['low']:.2f} to {ratio['high']:.2f}), peak {mebibytes:.0f} MiB"
            )
    pairs = zip(forward_and_backward("fused"), forward_and_backward("concatenated"), strict=True)
    result, *grads = (float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    print(f"fused deviates by {result:.1e} of the largest value, gradients by {max(grads):.1e}")
    return 0


if __name__ == "__main__":
    run(main)
