"""The rows of the image on which a cell of a map depends, from the net's gradients."""

import copy

import torch
from torch import Tensor, nn

from a2s_repro.models import Net


def smooth(net: Net) -> Net:
    """The net in evaluation mode and float64, with positive weights and averages in place of maxima: then every input
    that a window covers has a gradient."""
    net = copy.deepcopy(net).double().eval()
    for name, layer in net.named_modules():
        if isinstance(layer, nn.MaxPool2d):
            parent, _, child = name.rpartition(".")
            window = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
            setattr(net.get_submodule(parent), child, window)
        elif isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
    return net


def rows_seen(cell: Tensor, image: Tensor) -> int:
    """Rows of the image, from the first to the last, that a cell (a scalar) depends on; none at the image's border."""
    (gradient,) = torch.autograd.grad(cell, image, retain_graph=True)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows[0] > 0 and rows[-1] < image.shape[2] - 1, "the image is too small to see the whole field"
    return int(rows[-1] - rows[0] + 1)
