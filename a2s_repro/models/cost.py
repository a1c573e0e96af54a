"""The size of a net and the arithmetic of a forward pass, counted without computing it."""

import math
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from a2s_repro.models.base import Net


class Cost(NamedTuple):
    """Parameters of a net, and its multiply-accumulates (MAC) for one image."""

    parameters: int
    macs: dict[str, int]
    """By the names of the convolutions in the state dict, over all scales."""
    head: int
    """The attention's share of the multiply-accumulates."""

    @property
    def total(self) -> int:
        """Multiply-accumulates of all convolutions."""
        return sum(self.macs.values())

    def __str__(self) -> str:
        of_head = f", of which {self.head / 1e9:.1f} in the attention" if self.head else ""
        return f"{self.parameters:,} parameters, {self.total / 1e9:.1f} GMAC{of_head}"


def cost(net: Net, side: int) -> Cost:
    """The cost of a forward pass in training, for images of side x side pixels.

    Every output of a convolution counts its window times its input channels, whatever algorithm computes it: Winograd's
    and `ops.interp_concat_conv2d` need fewer multiplications. Resizing, merging, pools and normalisations are left out.

    Args:
        net: on the meta device, where its maps have shapes only. It is left in training mode.
        side: of the crop.
    """
    macs: Counter[str] = Counter()
    names = {layer: name.removeprefix("head.") for name, layer in net.named_modules()}

    def count(layer: nn.Conv2d, _: tuple[Any, ...], output: Tensor) -> None:
        macs[names[layer]] += output[0].numel() * math.prod(layer.weight.shape[1:])

    hooks = [layer.register_forward_hook(count) for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    net.train()(torch.empty(2, 3, side, side, device="meta"))  # batch normalisation over one cell takes two images
    for hook in hooks:
        hook.remove()
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return Cost(parameters, dict(macs), sum(count for name, count in macs.items() if name in net.unshared_layers))
