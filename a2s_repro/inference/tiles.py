"""Tiled inference: runs a net on overlapping tiles of a large image and assembles the maps of the whole image."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

Maps = tuple[Tensor | None, ...]
"""Maps (N, C, h, w) of one image, each on its own grid, with corner cells at the corner pixels; None for a missing
map."""


class Span(NamedTuple):
    """A tile along one axis, in pixels: its start, and the pixels [begin, end) whose result comes from it."""

    start: int
    begin: int
    end: int


def spans(side: int, tile: int, step: int) -> list[Span]:
    """Tiles of `tile` pixels along a `side`, both a multiple of `step` plus 1, the tile at least 4 steps long.

    Starts are multiples of `step`, so that cells of a tile's score maps coincide with cells of the whole image's maps.
    Neighbours overlap by at least a quarter of a tile; each pixel is assigned to the tile with the nearest centre.
    """
    if tile >= side:
        return [Span(0, 0, side)]
    room, most = (side - tile) // step, (tile - 1) * 3 // 4 // step
    gaps = -(-room // most)
    starts = [room * index // gaps * step for index in range(gaps + 1)]
    cuts = [(first + second + tile) // 2 for first, second in itertools.pairwise(starts)]
    return [Span(*span) for span in zip(starts, [0, *cuts], [*cuts, side], strict=True)]


def run_tiled(net: Callable[[Tensor], Maps], image: Tensor, tile: tuple[int, int], step: int) -> Maps:
    """The maps of `net` for an image (N, 3, H, W), assembled from tiles of (rows, columns) pixels.

    Every cell comes from one tile (see `spans`). It differs from the result on the whole image only by the part of its
    receptive field outside the tile.
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
    """An uninitialised map of the whole image for maps like `part`, which belongs to one tile."""
    axes = zip(sides, tile, part.shape[2:], strict=True)
    grid = ((side - 1) * (cells - 1) // (length - 1) + 1 for side, length, cells in axes)
    return part.new_empty(*part.shape[:2], *grid)


def _cells(span: Span, tile: int, cells: int) -> tuple[slice, slice]:
    """Slices of the cells assigned to a tile along one axis, in the whole image's map and in the tile's own map.

    `cells` is the number of cells in the tile's map.
    """
    stride = (tile - 1) // (cells - 1)
    begin, end = -(-span.begin // stride), -(-span.end // stride)
    offset = span.start // stride
    return slice(begin, end), slice(begin - offset, end - offset)
