"""Tiles: their positions, and the assembly of their maps to those of the whole image."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from a2s_repro.inference.tiles import run_tiled, spans


@given(st.integers(4, 40), st.integers(0, 200), st.sampled_from([8, 16, 32]))
def test_tiles_cover_a_side_and_overlap_by_a_quarter(tile_steps: int, more_steps: int, step: int) -> None:
    tile, side = tile_steps * step + 1, (tile_steps + more_steps) * step + 1
    tiles = spans(side, tile, step)
    assert tiles[0].begin == 0 and tiles[-1].end == side and tiles[-1].start + tile == side
    assert all(span.start % step == 0 for span in tiles)
    for span in tiles:
        assert span.start <= span.begin < span.end <= span.start + tile
    for first, second in itertools.pairwise(tiles):
        assert first.end == second.begin
        assert first.start + tile - second.start >= tile / 4
        centres = first.start + tile / 2, second.start + tile / 2
        assert abs(first.end - sum(centres) / 2) <= 1


def test_a_tile_as_long_as_the_side_is_the_only_one() -> None:
    assert spans(65, 65, 32) == spans(65, 97, 32) == [(0, 0, 65)]


@pytest.mark.parametrize("size", [(129, 641), (385, 161), (129, 129)])
def test_maps_on_different_grids_are_assembled_without_a_seam(size: tuple[int, int]) -> None:
    """The net samples single pixels: every 8th pixel as scores, every 4th as weights, every one as recalibration."""
    image = torch.rand(2, 3, *size)

    def net(part: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return part[:, :, ::8, ::8], part[:, :2, ::4, ::4], None, part

    for whole, tiled in zip(net(image), run_tiled(net, image, (129, 129), 32), strict=True):
        assert whole is tiled is None or torch.equal(whole, tiled)
