"""Pyramid pooling against plain torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from a2s_repro.errors import InputError
from a2s_repro.models.layers import Dropout
from a2s_repro.models.psp import AdaptiveAverage, PyramidPooling


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_averages_are_those_of_adaptive_pooling(memory_format: torch.memory_format):
    """Sides divided evenly, unevenly, and into more cells than they have pixels; float64."""
    torch.manual_seed(0)
    for cells in (1, 2, 3, 6):
        for size in ((6, 12), (65, 41), (4, 7)):
            x = torch.randn(2, 5, *size, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
            weigh = torch.randn(2, 5, cells, cells, dtype=torch.float64)
            pairs = []
            for pooled in (AdaptiveAverage(cells)(x), F.adaptive_avg_pool2d(x, cells)):
                pairs.append((pooled, *torch.autograd.grad((pooled * weigh).sum(), x)))
            for ours, theirs in zip(*pairs, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


def test_pyramid_pooling_is_its_composition():
    """9x9 cells, to which 2, 3 and 6 are resized with coordinates that float32 holds exactly; float64."""
    torch.manual_seed(0)
    psp = PyramidPooling(channels=6, num_classes=3, width=4, norm=nn.BatchNorm2d).double().train()
    psp.conv_last[3].p = 0  # the dropout
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64, requires_grad=True)
    maps = [x]
    for cells, (_, conv, *_) in zip((1, 2, 3, 6), psp.ppm, strict=True):
        pooled = F.conv2d(F.adaptive_avg_pool2d(x, cells), conv.weight)
        pooled = F.relu(F.batch_norm(pooled, None, None, training=True))
        maps.append(F.interpolate(pooled, (9, 9), mode="bilinear", align_corners=True))
    first, _, _, _, last = psp.conv_last
    hidden = F.relu(F.batch_norm(F.conv2d(torch.cat(maps, 1), first.weight, padding=1), None, None, training=True))
    expected = F.conv2d(hidden, last.weight, last.bias)

    found = psp(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    weigh = torch.randn_like(found)
    (ours,) = torch.autograd.grad((found * weigh).sum(), x)
    (theirs,) = torch.autograd.grad((expected * weigh).sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_dropout_drops_a_tenth_of_single_values():
    dropout = PyramidPooling(channels=6, num_classes=3, width=64, norm=nn.BatchNorm2d).train().conv_last[3]
    assert isinstance(dropout, Dropout)  # whose masks the trainer seeds by the pass
    kept = dropout(torch.ones(1, 64, 20, 20)).flatten(2) != 0
    assert kept.float().mean().item() == pytest.approx(0.9, abs=0.01)
    assert kept.any(2).all() and not kept.all(2).any()


def test_names_and_parameter_counts():
    """512 filters on the 512 channels of ResNet-34, for the 150 classes of ADE20K."""
    with torch.device("meta"):
        psp = PyramidPooling(channels=512, num_classes=150, width=512, norm=nn.BatchNorm2d)
    counts = {name: parameter.numel() for name, parameter in psp.named_parameters()}
    for index in range(4):
        assert counts[f"ppm.{index}.1.weight"] == 512 * 512
        assert counts[f"ppm.{index}.2.weight"] == counts[f"ppm.{index}.2.bias"] == 512
    assert counts["conv_last.0.weight"] == (512 + 4 * 512) * 512 * 9
    assert counts["conv_last.4.weight"] + counts["conv_last.4.bias"] == 150 * 512 + 150
    assert sum(counts.values()) == 12_927_126


def test_a_batch_of_one_image_is_refused_in_training():
    psp, x = PyramidPooling(channels=6, num_classes=3, width=4, norm=nn.BatchNorm2d), torch.randn(1, 6, 9, 9)
    with pytest.raises(InputError, match="one image at a time: give a batch of 2 or more"):
        psp.train()(x)
    assert psp.eval()(x).shape == (1, 3, 9, 9)
