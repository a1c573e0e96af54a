"""The decoders of the ResNet: one convolution, or pyramid pooling (PSPNet). Neither has an auxiliary loss.

Layers and state dict keys are those of CSAILVision/semantic-segmentation-pytorch's `c1_bilinear`, as it was at the end
of 2017, and `ppm_bilinear`.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from a2s_repro.errors import InputError
from a2s_repro.models.attention import ConcatConv2d
from a2s_repro.models.layers import Dropout

BINS = (1, 2, 3, 6)
"""Cells along a side of each pooled map."""


def c1(channels: int, num_classes: int) -> nn.Module:
    """A 1x1 convolution without bias, `conv_last`."""
    return nn.Sequential(OrderedDict(conv_last=nn.Conv2d(channels, num_classes, 1, bias=False)))


class AdaptiveAverage(nn.Module):
    """`nn.AdaptiveAvgPool2d(cells)` as products with two matrices.

    On a GPU torch's own has a gradient that differs from run to run, and ONNX has no words for it at any size.
    """

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, cells, cells)."""
        rows, columns = (self._averaging(length, x) for length in x.shape[2:])
        x = x.permute(0, 2, 3, 1)
        x = (rows @ x.flatten(2)).unflatten(2, x.shape[2:])
        return (columns @ x).permute(0, 3, 1, 2)

    def _averaging(self, length: int, x: Tensor) -> Tensor:
        """(cells, length): row i averages what is in [floor(i length / cells), ceil((i + 1) length / cells)) of `x`."""
        cell, at = (torch.arange(count, device=x.device) for count in (self.cells, length))
        first, end = cell * length // self.cells, ((cell + 1) * length + self.cells - 1) // self.cells
        inside = (at >= first[:, None]) & (at < end[:, None])
        return inside.to(x.dtype) / (end - first)[:, None]


class PyramidPooling(nn.Module):
    """Averages over 1, 2x2, 3x3 and 6x6 regions of the map beside the map itself, and two convolutions to the classes.

    Each pooled map goes through a 1x1 convolution with batch normalisation and ReLU and is resized to the map's grid,
    with the corners aligned as everywhere in this program. `conv_last`: a 3x3 convolution with batch normalisation and
    ReLU, dropout (0.1), and a 1x1 convolution. Source: Zhao et al., Pyramid Scene Parsing Network.

    Args:
        channels: of the map.
        num_classes: C.
        width: filters of each convolution but the last; PSPNet's are 512 on a map of 2048 channels.
        norm: the batch normalisation's class.
    """

    def __init__(self, channels: int, num_classes: int, width: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.ppm = nn.ModuleList(
            nn.Sequential(AdaptiveAverage(cells), nn.Conv2d(channels, width, 1, bias=False), norm(width), nn.ReLU(True))
            for cells in BINS
        )
        self.conv_last = nn.Sequential(
            ConcatConv2d(channels + len(BINS) * width, width, 3, padding=1, bias=False),
            norm(width),
            nn.ReLU(True),
            Dropout(0.1),
            nn.Conv2d(width, num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, h, w) -> (N, C, h, w).

        Raises:
            InputError: a batch of one image to train on, which is one value per channel where it is pooled to a cell.
        """
        if self.training and len(x) == 1 and isinstance(self.get_submodule("ppm.0.2"), nn.BatchNorm2d):
            raise InputError("pyramid pooling cannot be trained on one image at a time: give a batch of 2 or more.")
        hidden = self.conv_last[0]([x, *(pooled(x) for pooled in self.ppm)], x.shape[2:])
        return self.conv_last[1:](hidden)
