"""An operator at given sizes, dtype and layout, written as a command line, and the calls of CUDA code that it makes."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

OPERATORS = ["interp", "interp_concat", "interp_shift_add", "scale_merge", "scale_average", "scale_max"]
OPERATORS += ["scale_softmax", "segment"]
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16")}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
TAPS = 9
"""Planes of interp_shift_add for each channel of its result."""

MapSize = tuple[int, int, int, int]


@dataclass
class Case:
    op: str
    maps: list[MapSize]
    """(N, C, H, W) of the inputs; interp_shift_add: C is that of its result, H and W those of the planes."""
    size: tuple[int, int]
    """Of the result."""
    dtype: str = "float32"
    layout: str = "nchw"
    backward: bool = False
    recalibrated: bool = False
    weights_size: tuple[int, int] | None = None
    """Grid of scale_merge's logits, where it is not `size`."""

    def random(self, n: int, c: int, h: int, w: int) -> Tensor:
        """Random numbers, over and over: large maps of new ones would take longer than a sample of their blocks."""
        some = torch.randn(10007, generator=torch.Generator().manual_seed(0)).to(DTYPES[self.dtype])
        result = torch.empty(n, c, h, w, dtype=some.dtype, memory_format=LAYOUTS[self.layout])
        result.as_strided((result.numel(),), (1,)).copy_(some.repeat(-(-result.numel() // 10007))[: result.numel()])
        return result

    def unread(self, n: int, c: int, h: int, w: int) -> Tensor:
        """A map of which an operator takes only shape and layout."""
        strides = (0, 1, 0, 0) if self.layout == "channels_last" else (0, 0, 0, 0)
        return torch.empty(c, dtype=DTYPES[self.dtype]).as_strided((n, c, h, w), strides)

    def calls(self) -> list[tuple[str, list[Any]]]:
        """Operators of torch.ops.a2s and their arguments."""
        n, c = self.maps[0][:2]
        grid, size = self.maps[0][2:], self.size
        if self.op == "interp_concat":
            c = sum(shape[1] for shape in self.maps)
        grad = self.random(n, c, *size) if self.backward else None
        if self.op == "interp_shift_add":
            if self.backward:
                return [("interp_shift_add_backward", [grad, *grid])]
            return [("interp_shift_add", [self.random(n, TAPS * c, *grid), self.random(n, c, *size)])]
        if self.op == "interp" and self.backward:
            return [("interp_backward", [grad, *grid])]
        if self.op in ("interp_concat", "scale_average", "scale_max") and self.backward:
            scores = [self.unread(*shape) for shape in self.maps]
        else:
            scores = [self.random(*shape) for shape in self.maps]
        scales = len(scores)
        if self.op in ("interp", "segment"):
            return [(self.op, [scores[0], *size])]
        if self.op == "interp_concat":
            return [("interp_concat_backward", [grad, scores]) if self.backward else (self.op, [scores, *size])]
        if self.op == "scale_softmax":
            return [("scale_softmax_backward", [grad, scores[0].softmax(1)]) if self.backward else (self.op, scores)]
        if self.op == "scale_average":
            backward = "scale_average_backward", [grad, scores, 1 / scales]
            return [backward if self.backward else (self.op, [scores, *size, 1 / scales])]
        if self.op == "scale_max":
            winner = (self.random(n, c, *size).float().abs() * 7).remainder(scales).byte()
            return [("scale_max_backward", [grad, winner, scores]) if self.backward else (self.op, [scores, *size])]
        logits = self.random(n, scales, *(self.weights_size or size))
        recalibration = self.random(n, c, *size) if self.recalibrated else None
        if not self.backward:
            return [(self.op, [scores, logits, *size, recalibration])]
        weights = self.random(n, scales, *size).softmax(1)
        return [("scale_merge_backward", [grad, None, scores, logits, weights, recalibration])]


def map_size(text: str) -> MapSize:
    """NxCxS or NxCxHxW."""
    try:
        sides = [int(side) for side in text.split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (3, 4) or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no map: write it NxCxS or NxCxHxW")
    return (*sides, sides[-1])[:4]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that make up a case."""
    parser.add_argument("--op", choices=OPERATORS)
    parser.add_argument("--maps", nargs="+", type=map_size, metavar="NxCxS", help="inputs; or NxCxHxW")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("H", "W"), help="of the result (default: the first map's)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--layout", choices=LAYOUTS, default="nchw")
    parser.add_argument("--backward", action="store_true", help="the adjoint instead")
    parser.add_argument("--recalibrated", action="store_true", help="scale_merge with a recalibration")
    parser.add_argument("--weights-size", nargs=2, type=int, metavar=("H", "W"), help="grid of scale_merge's logits")


def case_of(options: argparse.Namespace) -> Case:
    return Case(
        options.op,
        options.maps,
        tuple(options.size or options.maps[0][2:]),
        options.dtype,
        options.layout,
        options.backward,
        options.recalibrated,
        tuple(options.weights_size) if options.weights_size else None,
    )


def parse_case(words: Sequence[str]) -> Case:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return case_of(parser.parse_args(words))
