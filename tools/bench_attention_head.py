"""Times two forms of att_conv1, the attention head's 3x3 convolution over the resized features of all scales.

`concatenated` resizes and concatenates the features first (`ops.interp_concat`, then the convolution); `tap by tap`
runs each scale's nine 1x1 convolutions at its own resolution and resizes, shifts and sums what they give. Both run in
turns in one process; times are medians, ratios medians and quartiles over the turns. docs/attention_head.md has the
derivation and what was measured.
"""

from _run import run

import argparse
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import trange

from a2s_repro import ops
from a2s_repro.models.share_net import GRID_STEP, RESAMPLING


def concatenated(features: list[Tensor], weight: Tensor, bias: Tensor, grid: tuple[int, int]) -> Tensor:
    """S x (N, C, h_s, w_s), weight (F, S C, 3, 3) -> (N, F, *grid)."""
    return F.conv2d(ops.interp_concat(features, grid), weight, bias, padding=1)


def tap_by_tap(features: list[Tensor], weight: Tensor, bias: Tensor, grid: tuple[int, int]) -> Tensor:
    """The same sum in another order."""
    result = bias[:, None, None]
    for x, filters in zip(features, weight.split([x.size(1) for x in features], dim=1), strict=True):
        if x.shape[2:] == grid:
            result = result + F.conv2d(x, filters, padding=1)
        else:
            filters = filters.permute(0, 3, 2, 1).reshape(-1, x.size(1), 1, 1)
            result = result + resized_and_shifted(F.conv2d(x, filters), grid)
    return result


def resized_and_shifted(planes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sum over the taps of planes (N, F dx dy, h_s, w_s), each resized by Interp and shifted: (N, F, *grid)."""
    n, channels, height, width = planes.shape
    rows, columns = (shifted_interp(*lengths, planes) for lengths in ((height, grid[0]), (width, grid[1])))
    planes = planes.reshape(n * channels // 3, 3 * height, width)
    planes = torch.bmm(rows.expand(len(planes), -1, -1), planes)
    planes = planes.view(-1, 3, grid[0], width).transpose(1, 2).reshape(-1, 3 * width)
    return (planes @ columns.t()).view(n, channels // 9, *grid)


def shifted_interp(length: int, out_length: int, like: Tensor) -> Tensor:
    """(out_length, 3 length): the matrices of Interp along one axis read one pixel before, at, and one after each
    output pixel, side by side; beyond the border they are zero."""
    identity = torch.eye(length, dtype=like.dtype, device=like.device)
    matrix = ops.interp(identity[None, None], (out_length, length))[0, 0]
    return F.pad(matrix, (0, 0, 1, 1)).unfold(0, out_length, 1).permute(2, 0, 1).flatten(1)


FORMS = {"concatenated": concatenated, "tap by tap": tap_by_tap}


def peak_memory(work: Callable[[], object], device: str) -> float:
    """MiB that `work` needs at its peak beyond what was held before; on the CPU of the process, from Linux's /proc."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20

    def resident(field: str) -> float:
        return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def seconds(work: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/bench_attention_head.py --crop 513 --scales 1 0.75 0.5 --batch-size 1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--crop", type=int, default=321, help="side of the image (default %(default)s)")
    parser.add_argument("--scales", type=float, nargs="+", choices=RESAMPLING, default=[1, 0.75, 0.5])
    parser.add_argument("--batch-size", type=int, default=1, help="(default %(default)s)")
    parser.add_argument("--features", type=int, default=1024, help="channels of each scale (default %(default)s)")
    parser.add_argument("--filters", type=int, default=512, help="(default %(default)s)")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--rounds", type=int, default=10, help="(default %(default)s)")
    parser.add_argument("--device", default="cpu", help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
    device, n, channels, filters = arguments.device, arguments.batch_size, arguments.features, arguments.filters

    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).contiguous(memory_format=layout)

    grid_of = {
        scale: ops.interp_size(ops.interp_size(arguments.crop, **RESAMPLING[scale]), shrink=GRID_STEP[1])
        for scale in (1, *arguments.scales)
    }
    grid = (grid_of[1], grid_of[1])
    features = [tensor(n, channels, grid_of[s], grid_of[s]).relu_().requires_grad_() for s in arguments.scales]
    weight = (0.005 * tensor(filters, channels * len(features), 3, 3)).requires_grad_()
    bias = torch.zeros(filters, device=device, requires_grad=True)
    grad = tensor(n, filters, *grid)

    def forward(form: Callable) -> Tensor:
        with torch.no_grad():
            return form(features, weight, bias, grid)

    def forward_and_backward(form: Callable) -> tuple[Tensor, ...]:
        result = form(features, weight, bias, grid)
        return result.detach(), *torch.autograd.grad(result, (*features, weight, bias), grad)

    print(f"{n} x {channels} features per scale, grids {' '.join(str(grid_of[s]) for s in arguments.scales)}, {layout}")
    for name, work in (("forward", forward), ("forward and backward", forward_and_backward)):
        memory, times = {}, {form: [] for form in FORMS}
        for form in FORMS:
            work(FORMS[form])
            memory[form] = peak_memory(lambda form=form, work=work: work(FORMS[form]), device)
        for turn in trange(arguments.rounds, desc=name, leave=False):
            for form in list(FORMS)[:: -1 if turn % 2 else 1]:
                times[form].append(seconds(lambda form=form, work=work: work(FORMS[form]), device))
        for form in FORMS:
            ratios = [mine / first for mine, first in zip(times[form], times["concatenated"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(
                f"{name}, {form}: {1000 * statistics.median(times[form]):.1f} ms, "
                f"{middle:.2f} of concatenated ({low:.2f} to {high:.2f}), peak {memory[form]:.0f} MiB"
            )
    expected = forward_and_backward(concatenated)
    for form in FORMS:
        pairs = zip(forward_and_backward(FORMS[form]), expected, strict=True)
        result, *grads = (float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        print(f"{form} deviates by {result:.1e} of the largest value, gradients by {max(grads):.1e}")


if __name__ == "__main__":
    run(main)
