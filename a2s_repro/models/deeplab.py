"""DeepLab on VGG-16: the layers that every system of the first paper is made of, and DeepLab-LargeFOV itself; and the
atrous spatial pyramid pooling of DeepLab v2.

Modules carry the names of the authors' Caffe layers, so the state dict's keys are those names plus `.weight`/`.bias`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.errors import InputError
from a2s_repro.models.base import Net, ParameterRule, Stream, Widths, relu
from a2s_repro.models.layers import Conv2d, Dropout
from a2s_repro.models.skip_branches import FILLER_STD, SKIP_LAYERS, TRAINING_STRIDE, skip_branch

TRUNK = {
    "pool1": ("conv1_1", "conv1_2"),
    "pool2": ("conv2_1", "conv2_2"),
    "pool3": ("conv3_1", "conv3_2", "conv3_3"),
    "pool4": ("conv4_1", "conv4_2", "conv4_3"),
    "pool5": ("conv5_1", "conv5_2", "conv5_3"),
}
"""The pools of VGG-16, and the convolutions before each, every one followed by a ReLU."""

ASPP_S, ASPP_L = (2, 4, 8, 12), (6, 12, 18, 24)
"""Dilations of atrous spatial pyramid pooling with a small and a large field of view (DeepLab v2, Section 4.1.2)."""


class DeepLab(Net):
    """VGG-16 at output stride 8, its field of view widened by holes, with or without the skip branches of DeepLab-MSc.

    pool4 and pool5 keep the resolution; conv5 has hole 2 and fc6, a 3x3 convolution, hole 12. In a skip-net score maps
    are also made of the image and of pool1 to pool4, and summed with fc8's: in training on the 1/8 grid, in evaluation
    mode at the size of the image. It starts from a trained LargeFOV, which stays as it is: conv1_1 .. fc8 have rate 0.

    With atrous spatial pyramid pooling fc6, fc7 and fc8 exist once for each dilation, as fc6_1, fc6_2 ..., side by side
    on pool5, and their scores are summed.

    As in the authors' definition the trunk conv1_1 .. fc7 has no filler but zero: its weights must come from a file.
    The other layers start gaussian with biases 0.
    """

    normalization = "caffe"

    def __init__(
        self,
        num_classes: int,
        *,
        skip_net: bool,
        pool5a: bool,
        dropout: float,
        widths: Widths | None,
        aspp: tuple[int, ...] = (),
    ) -> None:
        super().__init__(num_classes, dropout)
        w = widths or Widths()
        self.skip_net, self.widths, self.aspp = skip_net, w, tuple(aspp)
        dilation_of = {f"_{index}": dilation for index, dilation in enumerate(self.aspp, 1)} or {"": 12}
        self.branches = tuple(dilation_of)
        """Suffixes of the layers fc6, fc7 and fc8: none, or with atrous spatial pyramid pooling _1, _2 ..."""

        self._add_skip_branch("data", 3)
        self.conv1_1 = Conv2d(3, w.conv1, 3, padding=1)
        self.conv1_2 = Conv2d(w.conv1, w.conv1, 3, padding=1)
        self.pool1 = max_pool(stride=2)
        self._add_skip_branch("pool1", w.conv1)
        self.conv2_1 = Conv2d(w.conv1, w.conv2, 3, padding=1)
        self.conv2_2 = Conv2d(w.conv2, w.conv2, 3, padding=1)
        self.pool2 = max_pool(stride=2)
        self._add_skip_branch("pool2", w.conv2)
        self.conv3_1 = Conv2d(w.conv2, w.conv3, 3, padding=1)
        self.conv3_2 = Conv2d(w.conv3, w.conv3, 3, padding=1)
        self.conv3_3 = Conv2d(w.conv3, w.conv3, 3, padding=1)
        self.pool3 = max_pool(stride=2)
        self._add_skip_branch("pool3", w.conv3)
        self.conv4_1 = Conv2d(w.conv3, w.conv4, 3, padding=1)
        self.conv4_2 = Conv2d(w.conv4, w.conv4, 3, padding=1)
        self.conv4_3 = Conv2d(w.conv4, w.conv4, 3, padding=1)
        self.pool4 = max_pool(stride=1)
        self._add_skip_branch("pool4", w.conv4)
        self.conv5_1 = Conv2d(w.conv4, w.conv5, 3, padding=2, dilation=2)
        self.conv5_2 = Conv2d(w.conv5, w.conv5, 3, padding=2, dilation=2)
        self.conv5_3 = Conv2d(w.conv5, w.conv5, 3, padding=2, dilation=2)
        self.pool5 = max_pool(stride=1)
        self.pool5a = nn.AvgPool2d(3, stride=1, padding=1) if pool5a else None
        for branch, dilation in dilation_of.items():
            self.add_module(f"fc6{branch}", Conv2d(w.conv5, w.fc6, 3, padding=dilation, dilation=dilation))
            self.add_module(f"drop6{branch}", Dropout(dropout))
            self.add_module(f"fc7{branch}", Conv2d(w.fc6, w.fc7, 1))
            self.add_module(f"drop7{branch}", Dropout(dropout))
            self.add_module(f"fc8{branch}", Conv2d(w.fc7, num_classes, 1))

        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        self._fill((FILLER_STD if skip_net else {}) | {f"fc8{branch}": 0.01 for branch in self.branches})

    def _add_skip_branch(self, source: str, channels: int) -> None:
        if self.skip_net:
            layers = skip_branch(source, channels, self.widths.ms, self.num_classes, self.dropout)
            for name, layer in layers.items():
                self.add_module(name, layer)

    def map_channels(self) -> dict[str, int]:
        """Channels of the maps that a head can read: the trunk's, fc6's and fc7's after their dropout, and fc8's."""
        names = [name for names in TRUNK.values() for name in names] + ([] if self.aspp else ["fc6", "fc7"])
        channels = {name: len(self.get_parameter(f"{name}.weight")) for name in names} | {"fc8": self.num_classes}
        return channels | {pool: channels[names[-1]] for pool, names in TRUNK.items()}

    def trunk_maps(self, image: Tensor) -> dict[str, Tensor]:
        """The image (N, 3, H, W) as `data`, pool1 to pool5, and after their ReLU the convolutions in `head_maps`."""
        x, maps = image, {"data": image}
        for pool, convolutions in TRUNK.items():
            for name in convolutions:
                x = relu(self.get_submodule(name)(x))
                if name in self.head_maps:
                    maps[name] = x
            x = maps[pool] = self.get_submodule(pool)(x)
        return maps

    def skip_scores(self, source: str, x: Tensor) -> Tensor:
        """Score map of the skip branch that reads `x`, the map of `source`."""
        for layer in (f"{source}_conv", f"{source}_fc"):
            x = getattr(self, f"drop_{layer}")(relu(getattr(self, layer)(x)))
        return getattr(self, f"{source}_ms")(x)

    def stream(self, image: Tensor) -> Stream:
        """The net on a batch (N, 3, H, W) at one scale; the maps are those of `head_maps`, fc6, fc7 and fc8."""
        maps = self.trunk_maps(image)
        sides = [self.skip_scores(source, maps[source]) for source in TRAINING_STRIDE] if self.skip_net else []
        x = maps["pool5"] if self.pool5a is None else self.pool5a(maps["pool5"])
        features: dict[str, Tensor] = {}
        for branch in self.branches:
            fc6 = self.get_submodule(f"drop6{branch}")(relu(self.get_submodule(f"fc6{branch}")(x)))
            fc7 = self.get_submodule(f"drop7{branch}")(relu(self.get_submodule(f"fc7{branch}")(fc6)))
            scores = self.get_submodule(f"fc8{branch}")(fc7)
            features = {"fc8": features["fc8"] + scores if features else scores}
            if not self.aspp:
                features |= {"fc6": fc6, "fc7": fc7}
        scores = fc8 = features["fc8"]
        if sides:
            size = fc8.shape[2:] if self.training else image.shape[2:]
            scores = functools.reduce(torch.add, (ops.interp(each, size) for each in (*sides, fc8)))
        of_trunk = {name: maps[name] for name in self.head_maps if name in maps}
        return Stream(of_trunk | features, scores)

    def parameter_rules(self, lr_mult: Mapping[str, float] | None = None) -> dict[str, ParameterRule]:
        """The rule of every parameter by its key in the state dict.

        New layers learn at ten times the rate of the trunk; in a skip-net skip branches learn at the rate, and the
        trunk and fc8 not at all. `lr_mult` gives weights of layers other multipliers. Biases learn at twice the rate
        of their weights and do not decay.
        """
        rules = {}
        for name in self.keyed_parameters():
            layer, kind = name.split(".")
            mult = (lr_mult or {}).get(layer, self._lr_mult(layer))
            shared_by = 1 if layer in self.unshared_layers else len(self.scales)
            decay_mult = 1 if kind == "weight" and mult else 0
            rules[name] = ParameterRule(mult if kind == "weight" else 2 * mult, decay_mult, shared_by)
        return rules

    def _lr_mult(self, layer: str) -> float:
        if self.skip_net and layer not in self.unshared_layers:
            return 1 if layer in SKIP_LAYERS else 0
        return 10 if layer in self.new_layers else 1

    def config(self) -> dict:
        """Plain values from which `build_model` makes the same net again."""
        return {
            "net": type(self).__name__,
            "num_classes": self.num_classes,
            "pool5a": self.pool5a is not None,
            "dropout": self.dropout,
            "widths": dataclasses.asdict(self.widths),
        }


class DeepLabLargeFOV(DeepLab):
    """DeepLab-LargeFOV: the trunk at one scale, without skip branches.

    Args:
        num_classes: C, background included.
        pool5a: average pool 3x3 between pool5 and fc6. The published DeepLab v1 model and the authors' MSc nets of one
            scale have it; the share-nets and the baseline they were compared with do not.
        dropout: drop ratio after every layer that has a dropout: fc6, fc7, and those of skip branches and attention.
        widths: channels; other than the defaults they make a thin copy of the net.
    """

    def __init__(
        self, num_classes: int, *, pool5a: bool = False, dropout: float = 0.5, widths: Widths | None = None
    ) -> None:
        super().__init__(num_classes, skip_net=False, pool5a=pool5a, dropout=dropout, widths=widths)


class DeepLabMSc(DeepLab):
    """DeepLab-MSc-LargeFOV: a trained LargeFOV, frozen, with skip branches from the image and pool1 to pool4.

    In training the score map is on the 1/8 grid; in evaluation mode it is the sum of full-resolution maps.

    Args:
        num_classes: C, background included.
        pool5a: average pool 3x3 between pool5 and fc6, as the LargeFOV has that it starts from. The authors' MSc nets
            of one scale have it on PASCAL, not on COCO, and MSc share-nets nowhere.
        dropout, widths: as in DeepLabLargeFOV.
    """

    def __init__(
        self, num_classes: int, *, pool5a: bool = False, dropout: float = 0.5, widths: Widths | None = None
    ) -> None:
        super().__init__(num_classes, skip_net=True, pool5a=pool5a, dropout=dropout, widths=widths)


class DeepLabASPP(DeepLab):
    """DeepLab v2 on VGG-16 at one scale: atrous spatial pyramid pooling.

    On pool5 stand four branches of fc6, fc7 and fc8 side by side, whose fc6 have different dilations, and whose scores
    are summed.

    Args:
        num_classes: C, background included.
        aspp: dilations of fc6 in the branches; DeepLab v2's are ASPP_L, its smaller ones ASPP_S.
        dropout, widths: as in DeepLabLargeFOV.

    Raises:
        InputError: a value that is not possible.

    Source: DeepLab v2's VGG-16 definition for PASCAL VOC 2012, `exper/voc12/config/vgg16`.
    """

    def __init__(
        self,
        num_classes: int,
        aspp: tuple[int, ...] = ASPP_L,
        *,
        dropout: float = 0.5,
        widths: Widths | None = None,
    ) -> None:
        check_dilations(aspp)
        super().__init__(num_classes, skip_net=False, pool5a=False, dropout=dropout, widths=widths, aspp=tuple(aspp))

    def config(self) -> dict:
        fields = super().config()
        del fields["pool5a"]
        return fields | {"aspp": list(self.aspp)}


def check_dilations(aspp: Sequence[int]) -> None:
    """Raises InputError unless `aspp` are one or more dilations."""
    if not aspp or not all(isinstance(dilation, int) and dilation >= 1 for dilation in aspp):
        given = " ".join(map(str, aspp)) or "(none)"
        raise InputError(f"the dilations {given} of the pyramid pooling are not possible: give integers from 1 on.")


def max_pool(stride: int) -> nn.MaxPool2d:
    """Caffe's MAX pool 3x3 pad 1. torch's ceil_mode is the same rule: sizes round up, and a last window that would
    start in the padding beyond the input is dropped; equal values give the gradient to the first."""
    return nn.MaxPool2d(3, stride=stride, padding=1, ceil_mode=True)
