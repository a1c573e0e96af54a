"""Running a net on an image that is too large for it, tile by tile, as if it ran on the whole."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

Maps = tuple[Tensor | None, ...]
"""Maps (N, C, h, w) of one image, each on a grid of its own whose corner cells lie on the corner pixels; None where
there is none."""


class Span(NamedTuple):
    """A tile along one axis, in pixels: where it starts, and which pixels of the image [begin, end) it answers for."""

    start: int
    begin: int
    end: int


def spans(side: int, tile: int, step: int) -> list[Span]:
    """Tiles of `tile` pixels along a `side`, both a multiple of `step` plus 1, the tile at least 4 steps.

    Starts are multiples of `step`, so that the cells of a tile's score maps lie on those of the whole image.
    Neighbours share at least a quarter of a tile, and each answers for the pixels that are nearer to its centre.
    """
    if tile >= side:
        return [Span(0, 0, side)]
    room, most = (side - tile) // step, (tile - 1) * 3 // 4 // step
    gaps = -(-room // most)
    starts = [room * index // gaps * step for index in range(gaps + 1)]
    cuts = [(one + other + tile) // 2 for one, other in itertools.pairwise(starts)]
    return [Span(*each) for each in zip(starts, [0, *cuts], [*cuts, side], strict=True)]


def run_tiled(net: Callable[[Tensor], Maps], image: Tensor, tile: tuple[int, int], step: int) -> Maps:
    """The maps of `net` on an image (N, 3, H, W), put together from those of tiles of (rows, columns) pixels.

    Every cell is taken from one tile (see `spans`): it differs from that of the whole image only by what the net sees
    of the image beyond the tile.
    """
    sides = image.shape[2:]
    whole: list[Tensor | None] = []
    for place in itertools.product(*(spans(side, length, step) for side, length in zip(sides, tile, strict=True))):
        window = (slice(span.start, span.start + length) for span, length in zip(place, tile, strict=True))
        parts = net(image[(..., *window)])
        whole = whole or [None if part is None else _canvas(part, sides, tile) for part in parts]
        for canvas, part in zip(whole, parts, strict=True):
            if part is not None:
                cells = [_cells(*axis) for axis in zip(place, tile, part.shape[2:], strict=True)]
                canvas[(..., *(here for here, _ in cells))] = part[(..., *(there for _, there in cells))]
    return tuple(whole)


def _canvas(part: Tensor, sides: tuple[int, ...], tile: tuple[int, int]) -> Tensor:
    """An empty map of the whole image, of which `part` is that of a tile."""
    axes = zip(sides, tile, part.shape[2:], strict=True)
    grid = ((side - 1) * (cells - 1) // (length - 1) + 1 for side, length, cells in axes)
    return part.new_empty(*part.shape[:2], *grid)


def _cells(span: Span, tile: int, cells: int) -> tuple[slice, slice]:
    """The cells that a tile answers for, of the so many it has on an axis: in the whole image's map, and in its own."""
    stride = (tile - 1) // (cells - 1)
    begin, end = -(-span.begin // stride), -(-span.end // stride)
    offset = span.start // stride
    return slice(begin, end), slice(begin - offset, end - offset)
