"""Dropout whose masks can come from elsewhere than torch."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

Masks = Callable[[torch.Size, float], Tensor]
"""Shape and drop ratio -> bool tensor of that shape, true where an element is kept."""


class Dropout(nn.Dropout):
    """Caffe's Dropout: single elements, x * mask / (1 - ratio) in training, which is nn.Dropout.

    With `masks` they are asked for, in the order in which the layers run; without, torch draws them.
    """

    masks: Masks | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.masks is None:
            return super().forward(x)
        kept = self.masks(x.shape, self.p).to(x.device, non_blocking=True)
        return x * kept * (1 / (1 - float(np.float32(self.p))))


def take_masks_from(model: nn.Module, masks: Masks) -> None:
    """Lets all dropout layers of a net ask `masks`."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.masks = masks
