"""The share-net: DeepLab-LargeFOV run on an image at several scales, and the three ways to merge the score maps."""

import copy
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.errors import InputError
from a2s_repro.models.deeplab import DeepLabLargeFOV, Prediction, Widths, check_image, relu
from a2s_repro.models.dropout import Dropout

RESAMPLING = {1: {}, 0.75: {"shrink": 4, "zoom": 3}, 0.5: {"shrink": 2}, 0.25: {"shrink": 4}}
"""Interp's factors for the image at each scale. The authors halve the half image for 0.25; on sizes of 32k + 1 that is
every fourth pixel either way."""

GRID_STEP = {1: 8, 0.75: 32, 0.5: 16, 0.25: 32}
"""Image sides of k times this plus 1 pixels: no size is rounded, so the corners of all grids coincide."""

AVERAGE_FACTOR = {2: 0.5, 3: 0.33333, 4: 0.25}
"""The scale of the authors' Power layer by the number of scales: five digits of 1/3, rounded to float32 in use."""

BRANCH_ORDER = (1, 0.5, 0.75, 0.25)
"""In which the scales' branches run, as in the authors' files: their dropout layers draw in this order."""

MERGES = ("attention", "average", "max")


class ShareNet(DeepLabLargeFOV):
    """One DeepLab-LargeFOV applied to the image at each scale, its score maps merged on the grid of scale 1.

    Every branch runs the same weights and draws its own dropout masks. With attention (Eq. 1 and 2) the fc7 features
    of all scales, after their dropout, are brought to the grid of scale 1 and concatenated; att_conv1 (3x3), ReLU,
    dropout and att_fc (1x1) make one logit per scale and pixel from them, and their softmax over the scales weighs
    the score maps. `average` and `max` are the two baselines.

    Args:
        num_classes: C, background included.
        scales: two or more of 1, 0.75, 0.5, 0.25, in descending order.
        merge: "attention", "average" or "max".
        pool5a, dropout, widths: as in DeepLabLargeFOV.

    The attention head starts gaussian (standard deviation 0.005 for att_conv1, 0.01 for att_fc) with biases 0.
    """

    new_layers: ClassVar[Mapping[str, float]] = {"fc8": 0.01, "att_conv1": 0.005, "att_fc": 0.01}
    unshared_layers = ("att_conv1", "att_fc")

    def __init__(
        self,
        num_classes: int,
        scales: tuple[float, ...] = (1, 0.75, 0.5),
        merge: str = "attention",
        *,
        pool5a: bool = False,
        dropout: float = 0.5,
        widths: Widths | None = None,
    ) -> None:
        super().__init__(num_classes, pool5a=pool5a, dropout=dropout, widths=widths)
        scales = tuple(scales)
        if len(scales) < 2 or scales != tuple(scale for scale in RESAMPLING if scale in scales):
            raise InputError(
                f"scales {' '.join(f'{scale:g}' for scale in scales) or '(none)'}: a share-net takes two or more of "
                "1 0.75 0.5 0.25, in this order."
            )
        if merge not in MERGES:
            raise InputError(f"merge '{merge}' is not known; it is one of {', '.join(MERGES)}.")
        self.scales, self.merge = scales, merge
        self.grid_step = max(GRID_STEP[scale] for scale in scales)
        if merge == "attention":
            w = self.widths
            self.att_conv1 = nn.Conv2d(len(scales) * w.fc7, w.att_conv1, 3, padding=1)
            self.drop_att_conv1 = Dropout(dropout)
            self.att_fc = nn.Conv2d(w.att_conv1, len(scales), 1)
            nn.init.normal_(self.att_conv1.weight, std=self.new_layers["att_conv1"])
            nn.init.normal_(self.att_fc.weight, std=self.new_layers["att_fc"])
            nn.init.zeros_(self.att_conv1.bias)
            nn.init.zeros_(self.att_fc.bias)

    def forward(self, image: Tensor) -> Prediction:
        """Merged score map of a batch of BGR images less the mean pixel.

        `image` is (N, 3, H, W) with H and W of 16k + 1 for scales 1 and 0.5, of 32k + 1 with 0.75 or 0.25.

        Raises:
            InputError: the image has another shape or a size off the grid.
        """
        check_image(image, self.grid_step)
        branches = (self, *self.copies) if self.copies else (self,) * len(self.scales)
        in_order = sorted(zip(self.scales, branches, strict=True), key=lambda pair: BRANCH_ORDER.index(pair[0]))
        features_at = {scale: branch.features(rescaled(image, scale)) for scale, branch in in_order}
        scores_at = {scale: branch.fc8(features_at[scale]) for scale, branch in in_order}
        features, scores = ([maps[scale] for scale in self.scales] for maps in (features_at, scores_at))
        grid = tuple(ops.interp_size(side, shrink=GRID_STEP[1]) for side in image.shape[-2:])
        weights = None
        if self.merge == "attention":
            merged, weights = ops.scale_merge(scores, self.attention_logits(features, grid))
        elif self.merge == "average":
            merged = ops.scale_average(scores, grid, AVERAGE_FACTOR[len(scores)])
        else:
            merged = ops.scale_max(scores, grid)
        return Prediction(merged, tuple(scores), weights, self.scales)

    def attention_logits(self, features: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """fc7 of the S scales, (N, fc7, h_s, w_s) each -> (N, S, *grid)."""
        x = ops.interp_concat(features, grid)
        return self.att_fc(self.drop_att_conv1(relu(self.att_conv1(x))))

    def copy_per_branch(self) -> None:
        """Gives the branches after the first parameters of their own, which share the storage of the net's.

        The net computes the same, but every branch has gradients of its own: `copies[i]` holds those of
        `scales[i + 1]`, of all layers but the attention head. This is how Caffe shares weights; training needs it only
        where the copies' histories must be kept apart. The storage stays shared as long as the net stays where it is:
        call it after moving the net to its device and dtype.
        """
        self.copies = tuple(_sharing_copy(self) for _ in self.scales[1:])

    def config(self) -> dict:
        return super().config() | {"scales": list(self.scales), "merge": self.merge}


def _sharing_copy(net: ShareNet) -> DeepLabLargeFOV:
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
