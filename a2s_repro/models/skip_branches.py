"""The skip branches of DeepLab-MSc, which score the image and the maps of pool1 to pool4 beside the trunk.

Each is a 3x3 convolution, ReLU, dropout, a 1x1 convolution, ReLU, dropout, and a 1x1 convolution to the classes:
`<source>_conv`, `<source>_fc` and `<source>_ms`. Source: the authors' vgg128_ms_pool3_20M_* nets.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from a2s_repro.models.layers import Dropout

TRAINING_STRIDE = {"data": 8, "pool1": 4, "pool2": 2, "pool3": 1, "pool4": 1}
"""Source of each skip branch -> stride of its 3x3 convolution in training, to bring all score maps to the 1/8 grid."""

SKIP_LAYERS = tuple(f"{source}_{kind}" for source in TRAINING_STRIDE for kind in ("conv", "fc", "ms"))

FILLER_STD = {layer: 0.01 if layer.endswith("_ms") else 0.001 for layer in SKIP_LAYERS} | {"pool4_fc": 0.005}
"""Standard deviations of the layers' gaussian fillers; biases start at 0."""


class SkipConvolution(nn.Conv2d):
    """A convolution with its stride in training alone: the authors' test nets have stride 1 and the same weights."""

    def forward(self, x: Tensor) -> Tensor:
        stride = self.stride if self.training else 1
        return F.conv2d(x, self.weight, self.bias, stride, self.padding)


def skip_branch(source: str, channels: int, width: int, num_classes: int, dropout: float) -> dict[str, nn.Module]:
    """The layers of a skip branch by name; `channels` are those of its source, `width` those between its layers."""
    return {
        f"{source}_conv": SkipConvolution(channels, width, 3, stride=TRAINING_STRIDE[source], padding=1),
        f"drop_{source}_conv": Dropout(dropout),
        f"{source}_fc": nn.Conv2d(width, width, 1),
        f"drop_{source}_fc": Dropout(dropout),
        f"{source}_ms": nn.Conv2d(width, num_classes, 1),
    }
