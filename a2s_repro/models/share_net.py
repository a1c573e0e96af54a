"""The share-net: DeepLab run on an image at several scales, and the three ways to merge the score maps."""

import copy
import dataclasses

from torch import Tensor, nn

from a2s_repro import ops
from a2s_repro.errors import InputError
from a2s_repro.models.deeplab import DeepLab, Prediction, Widths, check_image, relu
from a2s_repro.models.dropout import Dropout

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


@dataclasses.dataclass(frozen=True)
class AttentionHead:
    """From what, and by how many layers, the attention over scales is computed; the defaults are the paper's choice.

    The first layer has `Widths.att_conv1` filters, and so has the second of three.
    """

    features: str = "fc7"
    """Maps of every scale that it is computed from: fc6 or fc7, after their dropout, or fc8."""
    layers: int = 2
    """1: att_fc. 2: att_conv1, att_fc. 3: att_conv1, att_conv2, att_fc."""
    kernel: int = 3
    """Side of att_conv1's window, 1 or 3; the other layers are 1x1."""

    def __post_init__(self) -> None:
        for name, known in (("features", ("fc6", "fc7", "fc8")), ("layers", (1, 2, 3)), ("kernel", (1, 3))):
            if getattr(self, name) not in known:
                allowed = ", ".join(map(str, known))
                raise InputError(f"the attention head's {name} '{getattr(self, name)}' is not known: give {allowed}.")

    def fillers(self) -> dict[str, float]:
        """Its layers, and the standard deviations that they start with."""
        first = {1: {}, 2: {"att_conv1": 0.005}, 3: {"att_conv1": 0.001, "att_conv2": 0.005}}[self.layers]
        return first | {"att_fc": 0.01}


class ShareNet(DeepLab):
    """One DeepLab-LargeFOV or DeepLab-MSc applied to the image at each scale, its score maps merged.

    Every branch runs the same weights and draws its own dropout masks. With attention (Eq. 1 and 2) the fc7 features
    of all scales, after their dropout, are brought to the grid of scale 1 and concatenated; att_conv1 (3x3), ReLU,
    dropout and att_fc (1x1) make one logit per scale and pixel from them, and their softmax over the scales weighs
    the score maps. `average` and `max` are the two baselines.

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

    unshared_layers = ("att_conv1", "att_conv2", "att_fc")

    def __init__(
        self,
        num_classes: int,
        scales: tuple[float, ...] = (1, 0.75, 0.5),
        merge: str = "attention",
        *,
        skip_net: bool = False,
        head: AttentionHead = AttentionHead(),
        pool5a: bool = False,
        dropout: float = 0.5,
        widths: Widths | None = None,
    ) -> None:
        super().__init__(num_classes, skip_net=skip_net, pool5a=pool5a, dropout=dropout, widths=widths)
        scales = tuple(scales)
        if len(scales) < 2 or scales != tuple(scale for scale in RESAMPLING if scale in scales):
            raise InputError(
                f"scales {' '.join(f'{scale:g}' for scale in scales) or '(none)'}: a share-net takes two or more of "
                "1 0.75 0.5 0.25, in this order."
            )
        if merge not in MERGES:
            raise InputError(f"merge '{merge}' is not known; it is one of {', '.join(MERGES)}.")
        self.scales, self.merge, self.head = scales, merge, head
        self.branch_order = scales if skip_net else tuple(scale for scale in BRANCH_ORDER if scale in scales)
        self.grid_step = max(GRID_STEP[scale] for scale in scales)
        if merge == "attention":
            self._add_head()

    def _add_head(self) -> None:
        w, width = self.widths, self.widths.att_conv1
        inputs = len(self.scales) * {"fc6": w.fc6, "fc7": w.fc7, "fc8": self.num_classes}[self.head.features]
        if self.head.layers > 1:
            self.att_conv1 = nn.Conv2d(inputs, width, self.head.kernel, padding=self.head.kernel // 2)
            self.drop_att_conv1 = Dropout(self.dropout)
            inputs = width
        if self.head.layers > 2:
            self.att_conv2 = nn.Conv2d(width, width, 1)
            self.drop_att_conv2 = Dropout(self.dropout)
        self.att_fc = nn.Conv2d(inputs, len(self.scales), 1)
        self._fill(self.head.fillers())

    def forward(self, image: Tensor) -> Prediction:
        """Merged score map of a batch of BGR images less the mean pixel.

        `image` is (N, 3, H, W) with H and W of 16k + 1 for scales 1 and 0.5, of 32k + 1 with 0.75 or 0.25.

        Raises:
            InputError: the image has another shape or a size off the grid.
        """
        check_image(image, self.grid_step)
        nets = dict(zip(self.scales, (self, *self.copies) if self.copies else (self,) * len(self.scales), strict=True))
        branches = {scale: nets[scale].branch(rescaled(image, scale)) for scale in self.branch_order}
        scores = [branches[scale].scores for scale in self.scales]
        grid = tuple(ops.interp_size(side, shrink=GRID_STEP[1]) for side in image.shape[-2:])
        size = image.shape[2:] if self.skip_net and not self.training else grid
        weights = None
        if self.merge == "attention":
            features = [branches[scale].features[self.head.features] for scale in self.scales]
            merged, weights = ops.scale_merge(scores, self.attention_logits(features, grid), size)
        elif self.merge == "average":
            merged = ops.scale_average(scores, size, AVERAGE_FACTOR[len(scores)])
        else:
            merged = ops.scale_max(scores, size)
        return Prediction(merged, tuple(scores), weights, self.scales, self.loss_order)

    @property
    def loss_order(self) -> tuple[float, ...]:
        """That of the scales, but in skip-nets with attention scale 1 and then from the smallest upwards."""
        if self.skip_net and self.merge == "attention":
            return (*self.scales[:1], *reversed(self.scales[1:]))
        return self.scales

    def attention_logits(self, features: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """The head's features of the S scales, (N, C_f, h_s, w_s) each -> (N, S, *grid)."""
        x = ops.interp_concat(features, grid)
        if self.head.layers > 1:
            x = self.drop_att_conv1(relu(self.att_conv1(x)))
        if self.head.layers > 2:
            x = self.drop_att_conv2(relu(self.att_conv2(x)))
        return self.att_fc(x)

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
            "head": dataclasses.asdict(self.head),
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
