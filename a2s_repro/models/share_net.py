"""The share-net: a net run on an image at several scales, and the three ways to merge the score maps."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.errors import InputError
from a2s_repro.models.deeplab import DeepLab, Widths
from a2s_repro.models.dropout import Dropout
from a2s_repro.models.net import Net, Prediction, check_image, relu
from a2s_repro.models.refine import RefineHead

RESAMPLING = {1: {}, 0.75: {"shrink": 4, "zoom": 3}, 0.5: {"shrink": 2}, 0.25: {"shrink": 4}}
"""Interp's factors for the image at each scale. The authors halve the half image for 0.25; on sizes of 32k + 1 that is
every fourth pixel either way."""

GRID_STEP = {1: 8, 0.75: 32, 0.5: 16, 0.25: 32}
"""Image sides of k times this plus 1 pixels: no size is rounded, so the corners of all grids coincide."""

AVERAGE_FACTOR = {2: 0.5, 3: 0.33333, 4: 0.25}
"""The scale of the authors' Power layer by the number of scales: five digits of 1/3, rounded to float32 in use."""

BRANCH_ORDER = (1, 0.5, 0.75, 0.25)
"""In which the scales' branches run, as in the authors' files: their dropout layers draw in this order. In skip-nets
it is the order of the scales."""

MERGES = ("attention", "average", "max")


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
        """What it takes of one branch: the map, on its own grid."""
        return maps[self.features]

    def attention(self, net: "MultiScale", features: list[Tensor], grid: tuple[int, int]) -> tuple[Tensor, None]:
        """Logits (N, S, *grid) from each scale's features; there is no recalibration."""
        return net.attention_logits(features, grid), None

    def config(self) -> dict:
        """Its fields as plain values."""
        return dataclasses.asdict(self)


class MultiScale(Net):
    """A net whose branch runs on the image at each scale, with the same weights, and whose score maps are merged.

    With attention the head reads maps of all scales and makes one logit per scale and pixel from them; their softmax
    over the scales weighs the score maps (Eq. 1 and 2). `average` and `max` are the two baselines.
    """

    merge: str | None = None
    head: AttentionHead | RefineHead

    def _merge_scales(self, scales: tuple[float, ...], merge: str | None, head: AttentionHead | RefineHead) -> None:
        """Makes a net of several scales of it; the net has its other layers already."""
        if len(scales) < 2 or scales != tuple(scale for scale in RESAMPLING if scale in scales):
            raise InputError(
                f"scales {' '.join(f'{scale:g}' for scale in scales) or '(none)'}: a share-net takes two or more of "
                "1 0.75 0.5 0.25, in this order."
            )
        if merge not in MERGES:
            raise InputError(f"merge '{merge}' is not known; it is one of {', '.join(MERGES)}.")
        self.scales, self.merge, self.head = scales, merge, head
        self.branch_order = tuple(scale for scale in BRANCH_ORDER if scale in scales)
        self.grid_step = max(GRID_STEP[scale] for scale in scales)
        if merge == "attention":
            channels = self.map_channels()
            if unknown := [name for name in head.maps if name not in channels]:
                raise InputError(
                    f"the net has no map '{unknown[0]}' for attention to read: it has {', '.join(channels)}."
                )
            self.head_maps, self.stride, self.unshared_layers = head.maps, head.stride, tuple(head.fillers())
            for name, layer in head.build(self).items():
                self.add_module(name, layer)

    def forward(self, image: Tensor) -> Prediction:
        """Merged score map of a batch of images, normalised as `normalization` says.

        `image` is (N, 3, H, W) with H and W of 8k + 1 for scale 1 alone, 16k + 1 with 0.5, 32k + 1 with 0.75 or 0.25.

        Raises:
            InputError: the image has another shape or a size off the grid.
        """
        if len(self.scales) == 1:
            return super().forward(image)
        check_image(image, self.grid_step)
        nets = dict(zip(self.scales, (self, *self.copies) if self.copies else (self,) * len(self.scales), strict=True))
        grid = tuple(ops.interp_size(side, shrink=self.stride) for side in image.shape[-2:])
        scores_at, read_at = {}, {}
        for scale in self.branch_order:
            branch = nets[scale].branch(rescaled(image, scale))
            scores_at[scale] = branch.scores
            if self.merge == "attention":
                read_at[scale] = self.head.read(branch.features, grid)
        scores = [scores_at[scale] for scale in self.scales]
        size = image.shape[2:] if self.skip_net and not self.training else grid
        weights = recalibration = None
        if self.merge == "attention":
            logits, recalibration = self.head.attention(self, [read_at[scale] for scale in self.scales], grid)
            factors = recalibration if self.head.recalibration == "multiply" else None
            merged, weights = ops.scale_merge(scores, logits, size, factors)
            if self.head.recalibration == "add":
                merged = merged + recalibration
        elif self.merge == "average":
            merged = ops.scale_average(scores, size, AVERAGE_FACTOR[len(scores)])
        else:
            merged = ops.scale_max(scores, size)
        return Prediction(merged, tuple(scores), weights, self.scales, self.loss_order, recalibration, self.stride)

    @property
    def loss_order(self) -> tuple[float, ...]:
        """That of the scales, but in skip-nets with attention scale 1 and then from the smallest upwards."""
        if self.skip_net and self.merge == "attention":
            return (*self.scales[:1], *reversed(self.scales[1:]))
        return self.scales

    def attention_logits(self, features: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """The head's features of the S scales, (N, C_f, h_s, w_s) each -> (N, S, *grid)."""
        if self.head.layers == 1:
            return self.att_fc(features, grid)
        x = self.drop_att_conv1(relu(self.att_conv1(features, grid)))
        if self.head.layers > 2:
            x = self.drop_att_conv2(relu(self.att_conv2(x)))
        return self.att_fc(x)


class ShareNet(MultiScale, DeepLab):
    """One DeepLab-LargeFOV or DeepLab-MSc applied to the image at each scale, its score maps merged.

    Every branch runs the same weights and draws its own dropout masks. With the attention of Attention to Scale the fc7
    features of all scales, after their dropout, are brought to the grid of scale 1 and concatenated; att_conv1 (3x3),
    ReLU, dropout and att_fc (1x1) make the logits from them. `RefineHead` is the attention of Attention to Refine.

    A skip-net's score maps are the sums with the side branches' (see `DeepLab`). In evaluation mode they are merged at
    the size of the image, with attention weights that are interpolated from the 1/8 grid.

    Args:
        num_classes: C, background included.
        scales: two or more of 1, 0.75, 0.5, 0.25, in descending order.
        merge: "attention", "average" or "max".
        skip_net: whether it has side branches.
        head: the attention's, if the merge has any.
        pool5a, dropout, widths: as in DeepLabLargeFOV.
    """

    def __init__(
        self,
        num_classes: int,
        scales: tuple[float, ...] = (1, 0.75, 0.5),
        merge: str = "attention",
        *,
        skip_net: bool = False,
        head: AttentionHead | RefineHead = AttentionHead(),
        pool5a: bool = False,
        dropout: float = 0.5,
        widths: Widths | None = None,
    ) -> None:
        super().__init__(num_classes, skip_net=skip_net, pool5a=pool5a, dropout=dropout, widths=widths)
        if skip_net and merge == "attention" and isinstance(head, RefineHead):
            raise InputError("the attention of Attention to Refine is for nets without side branches: leave those out.")
        self._merge_scales(tuple(scales), merge, head)
        if skip_net:
            self.branch_order = self.scales
        if merge == "attention":
            self._fill(head.fillers())

    def copy_per_branch(self) -> None:
        """Gives the branches after the first parameters of their own, which share the storage of the net's.

        The net computes the same, but every branch has gradients of its own: `copies[i]` holds those of
        `scales[i + 1]`, of all layers but the attention head. This is how Caffe shares weights; training needs it only
        where the copies' histories must be kept apart. The storage stays shared as long as the net stays where it is:
        call it after moving the net to its device and dtype.
        """
        self.copies = tuple(_sharing_copy(self) for _ in self.scales[1:])

    def config(self) -> dict:
        return super().config() | {
            "scales": list(self.scales),
            "merge": self.merge,
            "skip_net": self.skip_net,
            "head": self.head.config(),
        }


def _sharing_copy(net: ShareNet) -> DeepLab:
    """The net without its unshared layers, with parameters that share the net's storage; the rest is the net's own."""
    branch = copy.copy(net)
    branch.copies = ()
    layers = {name: layer for name, layer in net._modules.items() if name not in net.unshared_layers}
    for name, layer in layers.items():
        if layer._parameters:
            layers[name] = copy.copy(layer)
            layers[name]._parameters = {
                kind: nn.Parameter(p.data, requires_grad=p.requires_grad) for kind, p in layer._parameters.items()
            }
    branch._modules = layers
    return branch


def rescaled(image: Tensor, scale: float) -> Tensor:
    """The image (N, C, H, W) at one of the scales, by Interp: bilinear between pixel centres, without anti-aliasing."""
    if scale == 1:
        return image
    return ops.interp(image, tuple(ops.interp_size(size, **RESAMPLING[scale]) for size in image.shape[-2:]))
