"""DeepLab-LargeFOV: the VGG-16 net that every system of the first paper is made of.

Modules carry the names of the authors' Caffe layers, so the state dict's keys are those names plus `.weight`/`.bias`.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from a2s_repro.errors import InputError
from a2s_repro.models.dropout import Dropout


@dataclasses.dataclass(frozen=True)
class Widths:
    """Output channels of each group of layers; the defaults are the authors'."""

    conv1: int = 64
    conv2: int = 128
    conv3: int = 256
    conv4: int = 512
    conv5: int = 512
    fc6: int = 1024
    fc7: int = 1024
    att_conv1: int = 512

    def scaled(self, factor: float) -> "Widths":
        """Every width times `factor`, rounded, at least 1."""
        if not factor > 0:
            raise InputError(f"the width factor is {factor}; it must be positive (1 is the authors' net).")
        return Widths(**{name: max(1, round(width * factor)) for name, width in dataclasses.asdict(self).items()})


class Prediction(NamedTuple):
    """What a net says about a batch of N images; C classes, S scales, (h, w) the grid of scale 1."""

    scores: Tensor
    """(N, C, h, w) merged score map."""
    scale_scores: tuple[Tensor, ...]
    """S score maps (N, C, h_s, w_s) in the order of `scales`, each on its own grid."""
    weights: Tensor | None
    """(N, S, h, w) attention weights, which sum to 1 over S; None where the merge has none."""
    scales: tuple[float, ...]
    """The S scales, in descending order."""


class ParameterRule(NamedTuple):
    """How the solver treats one parameter (`param { lr_mult decay_mult }` of a Caffe layer)."""

    lr_mult: float
    decay_mult: float
    branches: int
    """How many branches share the parameter."""


class DeepLabLargeFOV(nn.Module):
    """DeepLab-LargeFOV on VGG-16: 3x3 convolutions, output stride 8, field of view widened by holes.

    pool4 and pool5 keep the resolution; conv5 has hole 2 and fc6, a 3x3 convolution, hole 12.

    Args:
        num_classes: C, background included.
        pool5a: average pool 3x3 between pool5 and fc6. The published DeepLab v1 model has it; the share-nets and the
            baseline they were compared with do not.
        dropout: drop ratio after fc6 and fc7 (and, in a share-net, after att_conv1).
        widths: channels; other than the defaults they make a thin copy of the net.

    As in the authors' definition the trunk conv1_1 .. fc7 has no filler but zero: its weights must come from a file.
    fc8 starts gaussian (standard deviation 0.01) with bias 0.
    """

    scales: tuple[float, ...] = (1,)
    new_layers: ClassVar[Mapping[str, float]] = {"fc8": 0.01}
    """Layers that start from a gaussian filler, of this standard deviation, and learn at ten times the rate."""
    unshared_layers: tuple[str, ...] = ()
    """Layers that exist once, not once per scale."""
    copies: "tuple[DeepLabLargeFOV, ...]" = ()
    """Copies of the net for the scales after the first; see `ShareNet.copy_per_branch`."""
    grid_step: int = 8
    """Image sides must be k times this plus 1 pixels: then the pixels under the cells of all score maps align."""

    def __init__(
        self, num_classes: int, *, pool5a: bool = False, dropout: float = 0.5, widths: Widths | None = None
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise InputError(f"num_classes is {num_classes}; a net needs at least one class.")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}; a drop ratio lies in [0, 1).")
        w = widths or Widths()
        self.num_classes, self.dropout, self.widths = num_classes, dropout, w

        self.conv1_1 = nn.Conv2d(3, w.conv1, 3, padding=1)
        self.conv1_2 = nn.Conv2d(w.conv1, w.conv1, 3, padding=1)
        self.pool1 = max_pool(stride=2)
        self.conv2_1 = nn.Conv2d(w.conv1, w.conv2, 3, padding=1)
        self.conv2_2 = nn.Conv2d(w.conv2, w.conv2, 3, padding=1)
        self.pool2 = max_pool(stride=2)
        self.conv3_1 = nn.Conv2d(w.conv2, w.conv3, 3, padding=1)
        self.conv3_2 = nn.Conv2d(w.conv3, w.conv3, 3, padding=1)
        self.conv3_3 = nn.Conv2d(w.conv3, w.conv3, 3, padding=1)
        self.pool3 = max_pool(stride=2)
        self.conv4_1 = nn.Conv2d(w.conv3, w.conv4, 3, padding=1)
        self.conv4_2 = nn.Conv2d(w.conv4, w.conv4, 3, padding=1)
        self.conv4_3 = nn.Conv2d(w.conv4, w.conv4, 3, padding=1)
        self.pool4 = max_pool(stride=1)
        self.conv5_1 = nn.Conv2d(w.conv4, w.conv5, 3, padding=2, dilation=2)
        self.conv5_2 = nn.Conv2d(w.conv5, w.conv5, 3, padding=2, dilation=2)
        self.conv5_3 = nn.Conv2d(w.conv5, w.conv5, 3, padding=2, dilation=2)
        self.pool5 = max_pool(stride=1)
        self.pool5a = nn.AvgPool2d(3, stride=1, padding=1) if pool5a else None
        self.fc6 = nn.Conv2d(w.conv5, w.fc6, 3, padding=12, dilation=12)
        self.drop6 = Dropout(dropout)
        self.fc7 = nn.Conv2d(w.fc6, w.fc7, 1)
        self.drop7 = Dropout(dropout)
        self.fc8 = nn.Conv2d(w.fc7, num_classes, 1)

        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        nn.init.normal_(self.fc8.weight, std=self.new_layers["fc8"])

    def features(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, fc7, H/8, W/8): fc7 after its ReLU and dropout."""
        x = self.pool1(relu(self.conv1_2(relu(self.conv1_1(image)))))
        x = self.pool2(relu(self.conv2_2(relu(self.conv2_1(x)))))
        x = self.pool3(relu(self.conv3_3(relu(self.conv3_2(relu(self.conv3_1(x)))))))
        x = self.pool4(relu(self.conv4_3(relu(self.conv4_2(relu(self.conv4_1(x)))))))
        x = self.pool5(relu(self.conv5_3(relu(self.conv5_2(relu(self.conv5_1(x)))))))
        if self.pool5a is not None:
            x = self.pool5a(x)
        x = self.drop6(relu(self.fc6(x)))
        return self.drop7(relu(self.fc7(x)))

    def forward(self, image: Tensor) -> Prediction:
        """Score map of a batch of BGR images less the mean pixel, (N, 3, H, W) with H and W of 8k + 1.

        Raises:
            InputError: the image has another shape or a size off the grid.
        """
        check_image(image, self.grid_step)
        scores = self.fc8(self.features(image))
        return Prediction(scores, (scores,), None, self.scales)

    def parameter_rules(self, lr_mult: Mapping[str, float] | None = None) -> dict[str, ParameterRule]:
        """The rule of every parameter by its name.

        Weights of new layers learn at ten times the rate; `lr_mult` gives layers other multipliers. Biases learn at
        twice the rate of their weights and do not decay.
        """
        rules = {}
        for name, _ in self.named_parameters():
            layer, kind = name.split(".")
            mult = (lr_mult or {}).get(layer, 10 if layer in self.new_layers else 1)
            branches = 1 if layer in self.unshared_layers else len(self.scales)
            rules[name] = ParameterRule(mult, 1, branches) if kind == "weight" else ParameterRule(2 * mult, 0, branches)
        return rules

    def config(self) -> dict:
        """Plain values from which `build_model` makes the same net again."""
        return {
            "net": type(self).__name__,
            "num_classes": self.num_classes,
            "pool5a": self.pool5a is not None,
            "dropout": self.dropout,
            "widths": dataclasses.asdict(self.widths),
        }


def check_image(image: Tensor, grid_step: int) -> None:
    """Refuses what is not a (N, 3, H, W) batch with H and W of k * `grid_step` + 1."""
    if image.dim() != 4 or image.shape[1] != 3:
        raise InputError(f"the image batch has shape {tuple(image.shape)}; the net takes (N, 3, H, W).")
    for size in image.shape[2:]:
        if size < 1 or (size - 1) % grid_step:
            below = max(size - 1, 0) // grid_step * grid_step + 1
            raise InputError(
                f"an image side of {size} pixels does not fit the net's grids: pad or crop it to {grid_step}k + 1, "
                f"the nearest being {below} and {below + grid_step}."
            )


def max_pool(stride: int) -> nn.MaxPool2d:
    """Caffe's MAX pool 3x3 pad 1. torch's ceil_mode is the same rule: sizes round up, and a last window that would
    start in the padding beyond the input is dropped; equal values give the gradient to the first."""
    return nn.MaxPool2d(3, stride=stride, padding=1, ceil_mode=True)


def relu(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)
