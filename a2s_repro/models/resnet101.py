"""DeepLab v2 on ResNet-101, at one scale or at several: atrous spatial pyramid pooling on frozen batch normalisations.

Modules carry the names of DeepLab v2's Caffe layers, so the state dict's keys are those names plus the kind of tensor:
`res2a_branch2a.weight`, `bn2a_branch2a.mean`, `scale2a_branch2a.bias`, `fc1_c0.weight`.
"""

import functools
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2s_repro.models.attention import AttentionHead
from a2s_repro.models.base import WEIGHING, ParameterRule, Stream, Widths, relu
from a2s_repro.models.deeplab import ASPP_L, check_dilations, max_pool
from a2s_repro.models.layers import Conv2d
from a2s_repro.models.refine import RefineHead
from a2s_repro.models.share_net import MultiScale

BLOCKS = {
    "res2": ("a", "b", "c"),
    "res3": ("a", *(f"b{index}" for index in range(1, 4))),
    "res4": ("a", *(f"b{index}" for index in range(1, 23))),
    "res5": ("a", "b", "c"),
}
"""The groups of blocks; the block `res4b22` is the last of its group."""

INNER_CHANNELS = {"res2": 64, "res3": 128, "res4": 256, "res5": 512}
"""Outputs of a block's first two convolutions; the block gives EXPANSION times as many."""

EXPANSION = 4
STRIDE = {"res3": 2}
"""Stride of the first 1x1 convolutions of a group; 1 elsewhere. res4 and res5 have dilations in its place."""

DILATION = {"res4": 2, "res5": 4}
"""Dilation of the 3x3 convolutions of a group, all of them; 1 elsewhere."""

STEM_CHANNELS = 64
EPS = 1e-5
"""Added to the variances, Caffe's default."""


class BatchNorm(nn.Module):
    """The statistics of Caffe's BatchNorm layer with `use_global_stats`: constants, in training too.

    Caffe stores sums: `mean` and `variance` divided by `scale_factor` are the statistics, all 0 if it is 0.
    """

    mean: Tensor
    variance: Tensor
    scale_factor: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("scale_factor", torch.ones(1))

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the channels."""
        factor = torch.where(self.scale_factor == 0, 0, 1 / self.scale_factor)
        return self.mean * factor, self.variance * factor


class Scale(nn.Module):
    """Caffe's Scale layer: a factor and a bias for each channel, here together with the BatchNorm before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, norm: BatchNorm) -> Tensor:
        """(N, C, h, w) -> the same: (x - mean) / sqrt(variance + EPS) * weight + bias."""
        return F.batch_norm(x, *norm.statistics(), self.weight, self.bias, training=False, eps=EPS)


class DeepLabResNet101(MultiScale):
    """ResNet-101 at output stride 8 and atrous spatial pyramid pooling, applied to the image at one scale or several.

    In place of their strides res4 has dilation 2 and res5 dilation 4. Every convolution of the trunk is without bias,
    and a BatchNorm with frozen statistics and a frozen Scale follow it. On res5c, parallel 3x3 convolutions of
    different dilations, `fc1_c0`, `fc1_c1` ..., make score maps, which are summed. Images are BGR grey levels less the
    mean, as in Caffe. DeepLab v2 takes the maximum over the scales 1, 0.75 and 0.5, with extra supervision.

    The trunk has no filler but zero, as in DeepLab v2's definition: its weights must come from a file. The other layers
    start gaussian with biases 0.

    Args:
        num_classes: C, background included.
        scales: 1 alone, or two or more of 1, 0.75, 0.5, 0.25, in descending order.
        merge: "attention", "hierarchical", "average" or "max"; None for one scale.
        aspp: dilations of the convolutions that score, one or more.
        head: description of the head, for attention of either kind. It reads res5c, a `RefineHead` any of
            `map_channels`.
        width: factor on all widths; other than 1 it makes a thin copy of the net.
        dropout: drop ratio in the head.

    Raises:
        InputError: a value that is not possible.

    Source: DeepLab v2's ResNet-101 definition for PASCAL VOC 2012, `exper/voc12/config/resnet101`.
    """

    normalization = "caffe"
    classifier_layer = "fc1"

    def __init__(
        self,
        num_classes: int,
        scales: tuple[float, ...] = (1,),
        merge: str | None = None,
        *,
        aspp: tuple[int, ...] = ASPP_L,
        head: AttentionHead | RefineHead | None = None,
        width: float = 1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_classes, dropout)
        check_dilations(aspp)
        self.aspp, self.width, self.widths = tuple(aspp), width, Widths().scaled(width)
        self.head_config = head or ON_RES5C
        channels = self._scaled(STEM_CHANNELS)
        self._add("conv1", 3, channels, 7, stride=2)
        self.pool1 = max_pool(stride=2)
        for group, blocks in BLOCKS.items():
            inner = self._scaled(INNER_CHANNELS[group])
            for block in blocks:
                stride = STRIDE.get(group, 1) if block == "a" else 1
                if block == "a":
                    self._add(f"{group}a_branch1", channels, EXPANSION * inner, 1, stride=stride)
                self._add(f"{group}{block}_branch2a", channels, inner, 1, stride=stride)
                self._add(f"{group}{block}_branch2b", inner, inner, 3, dilation=DILATION.get(group, 1))
                self._add(f"{group}{block}_branch2c", inner, EXPANSION * inner, 1)
                channels = EXPANSION * inner
        for index, dilation in enumerate(self.aspp):
            layer = Conv2d(channels, num_classes, 3, padding=dilation, dilation=dilation)
            self.add_module(f"fc1_c{index}", layer)
        for convolution in (each for each in self.modules() if isinstance(each, nn.Conv2d)):
            for parameter in convolution.parameters():
                nn.init.zeros_(parameter)
        self._fill(dict.fromkeys((f"fc1_c{index}" for index, _ in enumerate(self.aspp)), 0.01))
        if merge is not None or tuple(scales) != (1,):
            self._merge_scales(tuple(scales), merge, self.head_config)
            if merge in WEIGHING:
                self._fill(self.head_config.fillers())

    def _scaled(self, channels: int) -> int:
        return max(1, round(channels * self.width))

    def _add(self, name: str, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> None:
        """Adds a convolution without bias, its BatchNorm and its Scale."""
        padding = dilation * (kernel // 2)
        convolution = Conv2d(inputs, outputs, kernel, stride, padding=padding, dilation=dilation, bias=False)
        self.add_module(name, convolution)
        self.add_module(norm_of(name), BatchNorm(outputs))
        self.add_module(scale_of(name), Scale(outputs))

    def _normalized(self, name: str, x: Tensor) -> Tensor:
        """A convolution with its BatchNorm and Scale."""
        x = self.get_submodule(name)(x)
        return self.get_submodule(scale_of(name))(x, self.get_submodule(norm_of(name)))

    def block(self, name: str, x: Tensor) -> Tensor:
        """One block, such as `res4b22`: the sum of its input, or of `branch1` on it, and of three convolutions."""
        residual = self._normalized(f"{name}_branch1", x) if name.endswith("a") else x
        for branch in ("branch2a", "branch2b"):
            x = relu(self._normalized(f"{name}_{branch}", x))
        return relu(residual + self._normalized(f"{name}_branch2c", x))

    def map_channels(self) -> dict[str, int]:
        """Channels of the maps that a head can read: conv1's and the last block's of every group, and the scores."""
        last = {f"{group}{blocks[-1]}": self._scaled(INNER_CHANNELS[group]) for group, blocks in BLOCKS.items()}
        channels = {name: EXPANSION * inner for name, inner in last.items()}
        return {"conv1": self._scaled(STEM_CHANNELS)} | channels | {"fc1": self.num_classes}

    def stream(self, image: Tensor) -> Stream:
        """The net on a batch (N, 3, H, W) at one scale; the maps are those of `head_maps`, and fc1."""
        x = relu(self._normalized("conv1", image))
        maps = {"conv1": x} if "conv1" in self.head_maps else {}
        x = self.pool1(x)
        for name in block_names():
            x = self.block(name, x)
            if name in self.head_maps:
                maps[name] = x
        scores = functools.reduce(torch.add, (self.get_submodule(f"fc1_c{i}")(x) for i, _ in enumerate(self.aspp)))
        return Stream(maps | {"fc1": scores}, scores)

    def parameter_rules(self, lr_mult: Mapping[str, float] | None = None) -> dict[str, ParameterRule]:
        """The rule of every parameter by its key in the state dict.

        fc1 and the attention learn at ten times the rate of the trunk, their biases at twenty times and without decay.
        The Scale layers are frozen. `lr_mult` gives weights of layers other multipliers; that of `fc1` holds for all
        its convolutions.
        """
        rules = {}
        for name in self.keyed_parameters():
            layer, kind = name.split(".")
            default = 0 if layer.startswith("scale") else 10 if layer in self.new_layers else 1
            base = "fc1" if layer.startswith("fc1_") else layer
            mult = (lr_mult or {}).get(layer, (lr_mult or {}).get(base, default))
            shared_by = 1 if layer in self.unshared_layers else len(self.scales)
            decay_mult = 1 if kind == "weight" and mult else 0
            rules[name] = ParameterRule(mult if kind == "weight" else 2 * mult, decay_mult, shared_by)
        return rules

    def config(self) -> dict:
        return {
            "net": type(self).__name__,
            "num_classes": self.num_classes,
            "scales": list(self.scales),
            "merge": self.merge,
            "aspp": list(self.aspp),
            "head": self.head_config.config(),
            "width": self.width,
            "dropout": self.dropout,
        }


def norm_of(convolution: str) -> str:
    """The name of a convolution's BatchNorm: `bn2a_branch1` for `res2a_branch1`."""
    return f"bn{_place(convolution)}"


def scale_of(convolution: str) -> str:
    """The name of a convolution's Scale: `scale2a_branch1` for `res2a_branch1`."""
    return f"scale{_place(convolution)}"


def _place(convolution: str) -> str:
    return convolution.removeprefix("res") if convolution.startswith("res") else f"_{convolution}"


def block_names() -> Iterator[str]:
    """The names of all blocks in the order of the net."""
    return (f"{group}{block}" for group, blocks in BLOCKS.items() for block in blocks)


ON_RES5C = AttentionHead(features="res5c")
"""The head of Attention to Scale on ResNet-101, whose last map before the classifier is res5c."""
