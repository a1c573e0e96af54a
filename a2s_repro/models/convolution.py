"""The convolution of all nets, and what the scales of a share-net have of it in common."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from a2s_repro.ops.conv2d import Filters, conv2d


class Conv2d(nn.Conv2d):
    """A convolution whose padding keeps the size, in the form that is fastest; with a stride it is torch's."""

    filters: Filters | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.stride != (1, 1):
            return super().forward(x)
        return conv2d(x, self.filters or self.weight, self.bias, self.dilation[0])


@contextmanager
def shared_filters(net: nn.Module) -> Iterator[None]:
    """Within the block, layers that run several times share what is made of their weights (`Filters`)."""
    layers = [] if torch.compiler.is_compiling() else [each for each in net.modules() if isinstance(each, Conv2d)]
    for layer in layers:
        layer.filters = Filters(layer.weight)
    try:
        yield
    finally:
        for layer in layers:
            layer.filters = None
