"""Dropout with masks from outside, against what the authors' Caffe made of its own."""

import math

import numpy as np
import pytest
import torch

from a2s_repro.data.caffe_rng import WordStream, dropout_mask
from a2s_repro.models import ShareNet, Widths
from a2s_repro.models.layers import Dropout, take_masks_from

THIN = Widths().scaled(1 / 64)


def test_given_masks_make_the_recorded_output(golden):
    recorded = np.load(golden / "rng" / "dropout_and_fillers.npz")
    layer, words = Dropout(0.5), WordStream(1701)
    take_masks_from(layer, lambda shape, ratio: torch.from_numpy(dropout_mask(words, shape, ratio)))
    for k in range(3):
        for name in "ab":
            expected = recorded[f"out_{name}_pass{k}"]
            assert (layer(torch.ones(expected.shape)).numpy() == expected).all()


def test_what_is_kept_and_its_gradient_are_scaled_by_the_float32_ratio():
    layer, kept = Dropout(0.3), torch.tensor([True, False, True])
    take_masks_from(layer, lambda shape, ratio: kept)
    x = torch.tensor([3.0, 4.0, -5.0], requires_grad=True)
    layer(x).sum().backward()
    scale = np.float32(1 / (1 - float(np.float32(0.3))))
    assert layer(x).tolist() == [np.float32(3) * scale, 0, np.float32(-5) * scale]
    assert x.grad.tolist() == [scale, 0, scale]


def test_masks_are_for_training_only():
    layer = Dropout(0.5).eval()
    take_masks_from(layer, lambda shape, ratio: pytest.fail("a mask was drawn"))
    x = torch.randn(5)
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_without_masks_torch_draws_them(dtype: torch.dtype):
    """A quarter of the elements is dropped, and a sixteenth of the pairs of neighbours in memory.

    Each share is within five standard deviations, which one seed in 1.7 million is not.
    """
    layer = Dropout(0.25)
    x = torch.full((1, 2, 300, 300), 0.75, dtype=dtype).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    ours = layer(x)
    assert ours.dtype == dtype and ours.stride() == x.stride()
    assert ours.unique().tolist() == [0, 1]
    dropped = ours.permute(0, 2, 3, 1).flatten() == 0
    for events, share in ((dropped, 1 / 4), (dropped.view(-1, 2).all(1), 1 / 16)):
        deviation = math.sqrt(share * (1 - share) / len(events))
        assert events.double().mean().item() == pytest.approx(share, abs=5 * deviation)
    torch.manual_seed(0)
    assert torch.equal(layer(x), ours)


def test_streams_draw_in_the_order_of_caffes_files():
    """drop6 and drop7 of scales 1, 0.5, 0.75, 0.25, then the attention's. The grid's size identifies the scale."""
    net, drawn = ShareNet(3, (1, 0.75, 0.5, 0.25), widths=THIN), []

    def masks(shape, ratio):
        drawn.append((*shape, ratio))
        return torch.ones(shape, dtype=torch.bool)

    take_masks_from(net, masks)
    net(torch.randn(2, 3, 65, 65))
    grids = [9, 9, 5, 5, 7, 7, 3, 3]
    assert drawn == [(2, 16, grid, grid, 0.5) for grid in grids] + [(2, 8, 9, 9, 0.5)]
