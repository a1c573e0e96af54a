"""The head of Attention to Scale: a weight for every scale at every pixel."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.errors import check_known
from a2s_repro.models.base import Widths, relu
from a2s_repro.models.layers import Dropout

FEATURES = ("fc6", "fc7", "fc8", "layer4", "res5c", "backbone")
"""Maps that an `AttentionHead` can read; a net has some of them."""


class ConcatConv2d(nn.Conv2d):
    """The 1x1 or 3x3 convolution of maps that are resized to one grid and concatenated."""

    def forward(self, features: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:  # type: ignore[override]
        return ops.interp_concat_conv2d(features, self.weight, self.bias, grid)


@dataclasses.dataclass(frozen=True)
class AttentionHead:
    """Description of the head of Attention to Scale; the defaults are the paper's. `build` makes its module.

    Raises:
        InputError: a value that is not possible.
    """

    features: str = "fc7"
    """Map of every scale that the head reads: fc6 or fc7, after their dropout, or fc8; of ResNet34-dilated8 layer4, of
    ResNet-101 res5c, of any other backbone its last map, backbone."""
    layers: int = 2
    """1: att_fc. 2: att_conv1, att_fc. 3: att_conv1, att_conv2, att_fc."""
    kernel: int = 3
    """Side of att_conv1's window, 1 or 3; the other layers are 1x1."""

    stride: ClassVar[int] = 8
    """Pixels per cell of the grid on which the attention is computed."""
    merge_stride: ClassVar[int] = 8
    """Pixels per cell of the grid on which the scores are merged."""
    recalibration: ClassVar[None] = None
    supervision: ClassVar[str] = "raw"

    def __post_init__(self) -> None:
        for name, known in (("features", FEATURES), ("layers", (1, 2, 3)), ("kernel", (1, 3))):
            check_known(f"the attention head's {name}", getattr(self, name), known)

    @property
    def maps(self) -> tuple[str, ...]:
        """The maps of a stream that the head reads."""
        return (self.features,)

    def fillers(self) -> dict[str, float]:
        """The layers of the head, in their order, and the standard deviations of their gaussian fillers."""
        first = {1: {}, 2: {"att_conv1": 0.005}, 3: {"att_conv1": 0.001, "att_conv2": 0.005}}[self.layers]
        return first | {"att_fc": 0.01}

    def build(
        self, channels: Mapping[str, int], scales: Sequence[float], num_classes: int, widths: Widths, dropout: float
    ) -> "ScaleAttention":
        """The head's module, for streams with maps of these channels."""
        return ScaleAttention(self, channels[self.features], len(scales), widths.att_conv1, dropout)

    def config(self) -> dict:
        """The fields as plain values, for `build_head`."""
        return dataclasses.asdict(self)


class ScaleAttention(nn.Module):
    """The head of Attention to Scale: the logits of a softmax over scales (Section 3 of the paper).

    Args:
        head: its description.
        channels: of the map that it reads of every scale.
        scales: number of scales.
        width: filters of att_conv1, and of att_conv2 if there is one.
        dropout: drop ratio after each of these two.
    """

    def __init__(self, head: AttentionHead, channels: int, scales: int, width: int, dropout: float) -> None:
        super().__init__()
        self.features, self.layers = head.features, head.layers
        if head.layers > 1:
            self.att_conv1 = ConcatConv2d(scales * channels, width, head.kernel, padding=head.kernel // 2)
            self.drop_att_conv1 = Dropout(dropout)
        if head.layers > 2:
            self.att_conv2 = nn.Conv2d(width, width, 1)
            self.drop_att_conv2 = Dropout(dropout)
        self.att_fc = nn.Conv2d(width, scales, 1) if head.layers > 1 else ConcatConv2d(scales * channels, scales, 1)

    def read(self, maps: Mapping[str, Tensor], grid: tuple[int, int]) -> Tensor:
        """The features of one stream, (N, C, h_s, w_s), on their own grid."""
        return maps[self.features]

    def forward(self, features: Sequence[Tensor], grid: tuple[int, int]) -> tuple[Tensor, None]:
        """Logits (N, S, *grid) from the features of S streams, and None for the recalibration, which it lacks."""
        if self.layers == 1:
            return self.att_fc(features, grid), None
        x = self.drop_att_conv1(relu(self.att_conv1(features, grid)))
        if self.layers > 2:
            x = self.drop_att_conv2(relu(self.att_conv2(x)))
        return self.att_fc(x), None


ON_FC7 = AttentionHead()
"""The paper's, on VGG-16."""
ON_LAYER4 = AttentionHead(features="layer4")
"""The same on a ResNet, whose penultimate layer is layer4."""
