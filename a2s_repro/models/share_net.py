"""The share-net: a net run on an image at several scales, and the four ways to merge the score maps."""

import copy
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.errors import InputError, check_known
from a2s_repro.models.attention import ON_FC7, AttentionHead, ScaleAttention
from a2s_repro.models.base import WEIGHING, Net, Prediction, Stream, check_image, label_stride
from a2s_repro.models.deeplab import DeepLab, Widths
from a2s_repro.models.hierarchical import merge_in_pairs
from a2s_repro.models.layers import leave_out_of_state_dict, shared_filters
from a2s_repro.models.refine import RefineAttention, RefineHead

RESAMPLING = {
    2: {"zoom": 2},
    1.5: {"shrink": 2, "zoom": 3},
    1.25: {"shrink": 4, "zoom": 5},
    1: {},
    0.75: {"shrink": 4, "zoom": 3},
    0.5: {"shrink": 2},
    0.25: {"shrink": 4},
}
"""Interp's factors for the image at each scale. The authors halve the half image for 0.25; on sizes of 32k + 1 that is
every fourth pixel either way."""


def grid_step(scales: Sequence[float], stride: int = 8) -> int:
    """The least k such that image sides of k times a whole number, plus 1 pixels, fit the grids of all scales."""
    ratios = [Fraction(scale) for scale in scales]
    return math.lcm(*(stride * ratio.denominator // math.gcd(ratio.numerator, stride) for ratio in ratios))


GRID_STEP = {scale: grid_step((scale,)) for scale in RESAMPLING}
"""Image sides of k times this plus 1 pixels: no size is rounded, so the corners of all grids coincide."""

AVERAGE_FACTOR = {2: 0.5, 3: 0.33333, 4: 0.25}
"""The scale of the authors' Power layer by the number of scales: five digits of 1/3, rounded to float32 in use."""

STREAM_ORDER = (1, 0.5, 0.75, 0.25, 1.25, 1.5, 2)
"""Order in which the streams run, as in the authors' files: their dropout layers draw in this order. In skip-nets it is
the order of the scales."""

MERGES = (*WEIGHING, "average", "max")


class MultiScale(Net):
    """A net with a stream for the image at each scale, of the same weights, whose score maps are merged.

    With attention the head reads maps of all streams and makes one logit per scale and pixel from them; their softmax
    over the scales weighs the score maps (Eq. 1 and 2). `average` and `max` are the two baselines. With hierarchical
    attention the same head makes a logit per pixel from the maps of one stream, for every stream but the finest, and
    its sigmoid weighs that stream against the finer ones (`merge_in_pairs`).
    """

    head: ScaleAttention | RefineAttention
    """Makes the attention, where the merge is by attention of either kind."""
    head_config: AttentionHead | RefineHead
    """Description of the head; kept without attention, too."""
    possible_scales: tuple[float, ...] = (1, 0.75, 0.5, 0.25)
    """Scales that the net can have, in their order."""

    def _merge_scales(self, scales: tuple[float, ...], merge: str | None, head: AttentionHead | RefineHead) -> None:
        """Gives the net, which has its other layers already, several scales and their merge."""
        if len(scales) < 2 or scales != tuple(scale for scale in self.possible_scales if scale in scales):
            raise InputError(
                f"scales {' '.join(f'{scale:g}' for scale in scales) or '(none)'}: a share-net takes two or more of "
                f"{' '.join(f'{scale:g}' for scale in self.possible_scales)}, in this order."
            )
        check_known("merge", merge, MERGES)
        self.scales, self.merge, self.head_config = scales, merge, head
        self.stream_order = tuple(scale for scale in STREAM_ORDER if scale in scales)
        self.grid_step = grid_step(scales, self.output_stride)
        refines = merge in WEIGHING and isinstance(head, RefineHead)
        if refines and merge == "hierarchical":
            raise InputError("hierarchical merging takes the head of Attention to Scale: give an AttentionHead.")
        self.merged_cell = head.merge_stride if refines else self.output_stride
        self.head_cell = head.stride if refines else self.output_stride
        self.stride = label_stride(max(1, scales[0]), self.merged_cell)
        if merge in WEIGHING:
            channels = self.map_channels()
            if unknown := [name for name in head.maps if name not in channels]:
                raise InputError(
                    f"the net has no map '{unknown[0]}' for attention to read: it has {', '.join(channels)}."
                )
            self.head_maps, self.unshared_layers = head.maps, tuple(head.fillers())
            read = scales if merge == "attention" else scales[:1]  # together, or one at a time
            self.head = head.build(channels, read, self.num_classes, self.widths, self.dropout)
            leave_out_of_state_dict(self, "head")

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
        merged_grid = self._grid(image, self.merged_cell)
        grid = self._grid(image, self.head_cell)
        with shared_filters(self):
            outputs = {
                scale: self._read(nets[scale].stream(rescaled(image, scale)), grid) for scale in self.stream_order
            }
        scores, features = zip(*(outputs[scale] for scale in self.scales), strict=True)
        size = image.shape[2:] if self.skip_net and not self.training else merged_grid
        weights = recalibration = supervised = None
        if self.merge == "attention":
            logits, recalibration = self.head(features, grid)
            if recalibration is not None and merged_grid != grid:
                recalibration = ops.interp(recalibration, merged_grid)
            factors = recalibration if self.head_config.recalibration == "multiply" else None
            merged, weights = ops.scale_merge(scores, logits, size, factors)
            if self.head_config.recalibration == "add":
                merged = merged + recalibration
            if self.training and self.head_config.supervision == "recalibrated":
                on_grid = [ops.interp(stream, merged_grid) for stream in scores]
                supervised = tuple(s + recalibration if factors is None else s * factors for s in on_grid)
        elif self.merge == "hierarchical":
            attention = [self.head([maps], maps.shape[2:])[0].sigmoid() for maps in features[1:]]
            merged, weights = merge_in_pairs(scores, attention, size)
        elif self.merge == "average":
            merged = ops.scale_average(scores, size, AVERAGE_FACTOR.get(len(scores)))
        else:
            merged = ops.scale_max(scores, size)
        return Prediction(
            merged,
            scores,
            weights,
            self.scales,
            self.loss_order,
            recalibration,
            self.stride,
            supervised,
            self.output_stride,
        )

    def _grid(self, image: Tensor, cell: int) -> tuple[int, int]:
        """Rows and columns of the grid with a cell for every `cell`-th pixel of the image at the finest scale, or at
        scale 1 if that is finer."""
        finest = RESAMPLING[max(1, self.scales[0])]
        height, width = (ops.interp_size(ops.interp_size(side, **finest), shrink=cell) for side in image.shape[-2:])
        return height, width

    def _read(self, stream: Stream, grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """The scores of a stream, and the features that the head reads of it; its other maps are released."""
        return stream.scores, self.head.read(stream.features, grid) if self.merge in WEIGHING else None

    def layer(self, name: str) -> nn.Module:
        return self.get_submodule(name if hasattr(self, name.partition(".")[0]) else f"head.{name}")

    @property
    def loss_order(self) -> tuple[float, ...]:
        """The order of the scales; in skip-nets with attention scale 1, then from the smallest upwards."""
        if self.skip_net and self.merge == "attention":
            return (*self.scales[:1], *reversed(self.scales[1:]))
        return self.scales


class ShareNet(MultiScale, DeepLab):
    """One DeepLab-LargeFOV or DeepLab-MSc applied to the image at each scale, its score maps merged.

    All streams have the same weights, and each draws its own dropout masks. The head of Attention to Scale resizes the
    fc7 features of all scales, after their dropout, to the grid of scale 1 and concatenates them; att_conv1 (3x3), a
    ReLU, dropout and att_fc (1x1) compute the logits. `RefineHead` is the head of Attention to Refine.

    The score maps of a skip-net include those of its skip branches (see `DeepLab`). In evaluation mode they are merged
    at the size of the image, with attention weights that are interpolated from the 1/8 grid.

    Args:
        num_classes: C, background included.
        scales: two or more of 1, 0.75, 0.5, 0.25, in descending order.
        merge: "attention", "hierarchical", "average" or "max".
        skip_net: whether it has skip branches.
        head: description of the head, for attention and hierarchical attention.
        pool5a, dropout, widths: as in DeepLabLargeFOV.
    """

    def __init__(
        self,
        num_classes: int,
        scales: tuple[float, ...] = (1, 0.75, 0.5),
        merge: str | None = "attention",
        *,
        skip_net: bool = False,
        head: AttentionHead | RefineHead = ON_FC7,
        pool5a: bool = False,
        dropout: float = 0.5,
        widths: Widths | None = None,
    ) -> None:
        super().__init__(num_classes, skip_net=skip_net, pool5a=pool5a, dropout=dropout, widths=widths)
        if skip_net and merge == "attention" and isinstance(head, RefineHead):
            raise InputError("the attention of Attention to Refine is for nets without skip branches: leave those out.")
        self._merge_scales(tuple(scales), merge, head)
        if skip_net:
            self.stream_order = self.scales
        if merge in WEIGHING:
            self._fill(head.fillers())

    def copy_per_stream(self) -> None:
        """Gives the streams after the first parameters of their own, which share the storage of the net's.

        The net computes the same, but every stream has gradients of its own: `copies[i]` has those of `scales[i + 1]`,
        for all layers but the head. This is how Caffe shares weights; training needs it only where the copies'
        histories must be kept apart. The storage stays shared as long as the net stays where it is: call it after
        moving the net to its device and dtype.
        """
        self.copies = tuple(self._sharing_copy() for _ in self.scales[1:])

    def _sharing_copy(self) -> "ShareNet":
        """The net without its head; parameters share the net's storage, layers without parameters are the net's own."""
        shared: dict[int, Any] = {id(layer): layer for layer in self.modules() if not list(layer.parameters())}
        shared |= {id(p): nn.Parameter(p.data, requires_grad=p.requires_grad) for p in self.parameters()}
        shared[id(self.copies)] = ()
        if self.merge in WEIGHING:
            shared[id(self.head)] = None
        return copy.deepcopy(self, shared)

    def train(self, mode: bool = True) -> "ShareNet":
        for each in self.copies:
            each.train(mode)
        return super().train(mode)

    def config(self) -> dict:
        return super().config() | {
            "scales": list(self.scales),
            "merge": self.merge,
            "skip_net": self.skip_net,
            "head": self.head_config.config(),
        }


def rescaled(image: Tensor, scale: float) -> Tensor:
    """The image (N, C, H, W) at one of the scales, by Interp: bilinear between pixel centres, without anti-aliasing."""
    if scale == 1:
        return image
    return ops.interp(image, tuple(ops.interp_size(size, **RESAMPLING[scale]) for size in image.shape[-2:]))
