"""Arguments for the operators' CUDA implementations, by name, sizes, dtype and layout."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

OPERATORS = (
    "interp",
    "interp_concat",
    "interp_shift_add",
    "scale_merge",
    "scale_average",
    "scale_max",
    "segment",
    "scale_softmax",
)
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
TAPS = 9
"""Planes of interp_shift_add for each channel of its result."""


def arguments(
    operator: str,
    maps: Sequence[tuple[int, int, int, int]],
    size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    layout: str = "nchw",
    backward: bool = False,
    recalibrated: bool = False,
    weights_size: tuple[int, int] | None = None,
) -> tuple[str, list[Any]]:
    """Name and arguments of an operator of torch.ops.a2s.

    Args:
        maps: (N, C, H, W) of the inputs; of interp_shift_add, of its result's channels and the planes' grid.
        size: of the result; default: that of the first map.
        weights_size: grid of scale_merge's logits, where it is not `size`.
        backward: the operator's `*_backward`, with a gradient of the result's size.
    """
    size = size or maps[0][2:]
    generator = torch.Generator().manual_seed(0)

    def random(n: int, c: int, h: int, w: int) -> Tensor:
        return torch.randn(n, c, h, w, generator=generator).to(dtype).contiguous(memory_format=LAYOUTS[layout])

    n, c = maps[0][:2]
    if operator == "interp_shift_add":
        base = random(n, c, *size)
        return (
            ("interp_shift_add_backward", [base, *maps[0][2:]])
            if backward
            else (operator, [random(n, TAPS * c, *maps[0][2:]), base])
        )
    if operator == "interp" and backward:
        return "interp_backward", [random(n, c, *size), *maps[0][2:]]
    scores = [random(*shape) for shape in maps]
    if operator in ("interp", "segment"):
        return operator, [scores[0], *size]
    if operator == "interp_concat":
        return operator, [scores, *size]
    if operator == "scale_softmax":
        return ("scale_softmax_backward", [scores[0], scores[0].softmax(1)]) if backward else (operator, scores)
    grad = random(n, c, *size) if backward else None
    if operator == "scale_average":
        return (
            ("scale_average_backward", [grad, scores, 1 / len(maps)])
            if backward
            else (operator, [scores, *size, 1 / len(maps)])
        )
    if operator == "scale_max":
        winner = torch.randint(len(maps), (n, c, *size), generator=generator, dtype=torch.uint8)
        winner = winner.contiguous(memory_format=LAYOUTS[layout])
        return ("scale_max_backward", [grad, winner, scores]) if backward else (operator, [scores, *size])
    logits = random(n, len(maps), *(weights_size or size))
    recalibration = random(n, c, *size) if recalibrated else None
    if not backward:
        return operator, [scores, logits, *size, recalibration]
    weights = random(n, len(maps), *size).softmax(1).contiguous(memory_format=LAYOUTS[layout])
    return "scale_merge_backward", [grad, None, scores, logits, weights, recalibration]
