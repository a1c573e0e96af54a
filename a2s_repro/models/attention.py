"""The attention of Attention to Scale."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.errors import InputError
from a2s_repro.models.base import Net, relu
from a2s_repro.models.layers import Dropout


class ConcatConv2d(nn.Conv2d):
    """The convolution, 1x1 or 3x3, of maps that are brought to one grid and concatenated."""

    def forward(self, features: list[Tensor], grid: tuple[int, int]) -> Tensor:
        return ops.interp_concat_conv2d(features, self.weight, self.bias, grid)


@dataclasses.dataclass(frozen=True)
class AttentionHead:
    """What the attention of Attention to Scale is computed from, and by how many layers; the defaults are the paper's.

    The first layer has `Widths.att_conv1` filters, and so has the second of three.
    """

    features: str = "fc7"
    """Map of every scale that it is computed from: fc6 or fc7, after their dropout, or fc8; of a ResNet layer4."""
    layers: int = 2
    """1: att_fc. 2: att_conv1, att_fc. 3: att_conv1, att_conv2, att_fc."""
    kernel: int = 3
    """Side of att_conv1's window, 1 or 3; the other layers are 1x1."""

    stride: ClassVar[int] = 8
    """Pixels per cell of the grid on which the attention is computed, and the scores are merged."""
    recalibration: ClassVar[None] = None

    def __post_init__(self) -> None:
        for name, known in (("features", ("fc6", "fc7", "fc8", "layer4")), ("layers", (1, 2, 3)), ("kernel", (1, 3))):
            if getattr(self, name) not in known:
                allowed = ", ".join(map(str, known))
                raise InputError(f"the attention head's {name} '{getattr(self, name)}' is not known: give {allowed}.")

    @property
    def maps(self) -> tuple[str, ...]:
        """The maps of a branch net that it reads."""
        return (self.features,)

    def build(self, net: Net) -> dict[str, nn.Module]:
        """Its layers by name, for a net of several scales."""
        inputs, width = len(net.scales) * net.map_channels()[self.features], net.widths.att_conv1
        layers: dict[str, nn.Module] = {}
        if self.layers > 1:
            layers["att_conv1"] = ConcatConv2d(inputs, width, self.kernel, padding=self.kernel // 2)
            layers["drop_att_conv1"] = Dropout(net.dropout)
            inputs = width
        if self.layers > 2:
            layers["att_conv2"] = nn.Conv2d(width, width, 1)
            layers["drop_att_conv2"] = Dropout(net.dropout)
        return layers | {"att_fc": (nn.Conv2d if layers else ConcatConv2d)(inputs, len(net.scales), 1)}

    def fillers(self) -> dict[str, float]:
        """Its layers, and the standard deviations that they start with."""
        first = {1: {}, 2: {"att_conv1": 0.005}, 3: {"att_conv1": 0.001, "att_conv2": 0.005}}[self.layers]
        return first | {"att_fc": 0.01}

    def read(self, maps: Mapping[str, Tensor], grid: tuple[int, int]) -> Tensor:
        """What it needs of one branch: the map, on its own grid."""
        return maps[self.features]

    def attention(self, net: Net, features: Sequence[Tensor], grid: tuple[int, int]) -> tuple[Tensor, None]:
        """Logits (N, S, *grid) from the S scales' features, (N, C_f, h_s, w_s) each; there is no recalibration."""
        if self.layers == 1:
            return net.att_fc(features, grid), None
        x = net.drop_att_conv1(relu(net.att_conv1(features, grid)))
        if self.layers > 2:
            x = net.drop_att_conv2(relu(net.att_conv2(x)))
        return net.att_fc(x), None

    def config(self) -> dict:
        """Its fields as plain values."""
        return dataclasses.asdict(self)


ON_FC7 = AttentionHead()
"""The paper's, on VGG-16."""
ON_LAYER4 = AttentionHead(features="layer4")
"""The same on a ResNet, whose penultimate layer is layer4."""
