"""The base of all nets: their predictions, the rules by which their parameters are trained, their arguments."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2s_repro.errors import InputError

WEIGHING = ("attention", "hierarchical")
"""Merges by a head's attention, which give weights of the scales at every pixel."""


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
    ms: int = 128
    """Between the convolutions of a skip branch."""
    refine: int = 512
    """Of the head of Attention to Refine, but for its last convolutions."""

    def scaled(self, factor: float) -> "Widths":
        """Every width times `factor`, rounded, at least 1."""
        if not factor > 0:
            raise InputError(f"the width factor is {factor}; it must be positive (1 is the authors' net).")
        return Widths(**{name: max(1, round(width * factor)) for name, width in dataclasses.asdict(self).items()})


class Prediction(NamedTuple):
    """Prediction for a batch of N images; C classes, S scales, (h, w) the grid of the merged map.

    That grid is the one of scale 1, 1/8 of the image, as 8k + 1 pixels make k + 1 cells; where the attention is that of
    Attention to Refine, 1/4 by default. A skip-net in evaluation mode predicts every pixel: (h, w) is then the image,
    and every scale's map as large as the image at that scale.
    """

    scores: Tensor
    """(N, C, h, w) merged score map."""
    scale_scores: tuple[Tensor, ...]
    """S score maps (N, C, h_s, w_s) in the order of `scales`, each on its own grid: 1/8 of the image at that scale."""
    weights: Tensor | None
    """(N, S, h, w) attention weights, which sum to 1 over S; None where the merge has none."""
    scales: tuple[float, ...]
    """The S scales, in descending order."""
    loss_order: tuple[float, ...]
    """The S scales in the order in which the authors' file has their losses."""
    recalibration: Tensor | None = None
    """(N, C, h, w) recalibration: factors in (0, 1) that the scores are multiplied by, or biases; None without."""
    stride: int = 8
    """Pixels of the image per cell of `scores` in training."""
    supervised: tuple[Tensor, ...] | None = None
    """(N, C, h, w) recalibrated score maps of the S scales that extra supervision takes; None: `scale_scores`."""
    output_stride: int = 8
    """Pixels per cell of each of `scale_scores`, of the image at its scale."""


def label_stride(scale: float, cell: int) -> int:
    """Pixels of the image between the labels of scores that have a cell for every `cell`-th pixel at a scale.

    A map at 0.75, 1.25 or 1.5 has no whole number of pixels per cell: its scores meet labels at a whole number, not
    more than it, of pixels.
    """
    return int(cell / scale) if (cell / scale).is_integer() else cell // math.ceil(scale)


class ParameterRule(NamedTuple):
    """How the solver treats one parameter (`param { lr_mult decay_mult }` of a Caffe layer)."""

    lr_mult: float
    decay_mult: float
    shared_by: int
    """Number of streams that share the parameter."""


class Stream(NamedTuple):
    """Maps that the net computes from the image at one scale."""

    features: dict[str, Tensor]
    """Maps by name, among them those that the head reads."""
    scores: Tensor
    """(N, C, h, w) score map on the 1/8 grid, or of a skip-net in evaluation mode at the size of the image."""


class Net(nn.Module, abc.ABC):
    """A net that scores the pixels of an image, at one scale or at several (`MultiScale`).

    Args:
        num_classes: C, background included.
        dropout: drop ratio of the layers that drop single values.

    Raises:
        InputError: a value that is not possible.
    """

    normalization: str
    """How its images are normalised: "caffe", BGR grey levels less the mean pixel, or "torchvision", RGB in [0, 1]
    less the mean over the standard deviation."""
    scales: tuple[float, ...] = (1,)
    merge: str | None = None
    """How the score maps of several scales become one: "attention", "hierarchical", "average" or "max"."""
    stream_order: tuple[float, ...] = (1,)
    """The scales in the order of the streams in the authors' file, in which they run and draw random numbers."""
    unshared_layers: tuple[str, ...] = ()
    """Layers that exist once, not once per scale."""
    copies: "tuple[Net, ...]" = ()
    """Copies of the net for the streams after the first; see `ShareNet.copy_per_stream`."""
    grid_step: int = 8
    """Image sides must be k times this plus 1 pixels: then the pixels under the cells of all score maps align."""
    stride: int = 8
    """Pixels per cell of the merged score map in training."""
    output_stride: int = 8
    """Pixels per cell of a stream's score map, of the image at its scale."""
    skip_net: bool = False
    """Whether skip branches also score the image and lower maps, in evaluation mode at the size of the image."""
    classifier_layer: str = "fc8"
    """Module that scores, or prefix of those that do. Caffe's name of it has the data set's: `fc8_voc12`."""
    head_maps: tuple[str, ...] = ()
    """Maps of a stream that the head reads."""
    widths: Widths

    def __init__(self, num_classes: int, dropout: float) -> None:
        super().__init__()
        if num_classes < 1:
            raise InputError(f"num_classes is {num_classes}; a net needs at least one class.")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}; a drop ratio lies in [0, 1).")
        self.num_classes, self.dropout = num_classes, dropout
        self.new_layers: dict[str, float] = {}
        """Layers with a gaussian filler, of this standard deviation, in the order of the file; 0: that keep their
        constant start."""

    @abc.abstractmethod
    def stream(self, image: Tensor) -> Stream:
        """The net on a batch (N, 3, H, W) at one scale."""

    @abc.abstractmethod
    def map_channels(self) -> dict[str, int]:
        """The maps that attention can read, and their channels."""

    @abc.abstractmethod
    def parameter_rules(self, lr_mult: Mapping[str, float] | None = None) -> dict[str, ParameterRule]:
        """The rule of every parameter by its key; `lr_mult` gives layers other multipliers."""

    @abc.abstractmethod
    def config(self) -> dict:
        """Plain values from which `build_model` makes the same net again."""

    def forward(self, image: Tensor) -> Prediction:
        """Score map of a batch of images, normalised as `normalization` says: (N, 3, H, W) with H and W of 8k + 1.

        Raises:
            InputError: the image has another shape or a size off the grid.
        """
        check_image(image, self.grid_step)
        scores = self.stream(image).scores
        return Prediction(scores, (scores,), None, self.scales, self.scales)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def bytes_per_pixel(self) -> float:
        """Estimated memory of a forward pass per pixel: twice the largest input plus output of a layer.

        Computed on the meta device. Leaves the net in evaluation mode.
        """
        size = tuple(-(-512 // self.grid_step) * self.grid_step + 1 for _ in range(2))
        largest = 0

        def measure(_: nn.Module, inputs: tuple, output: Tensor) -> None:
            nonlocal largest
            largest = max(largest, sum(value.nbytes for value in (*inputs, output) if isinstance(value, Tensor)))

        layers = [module for module in self.modules() if not any(module.children())]
        hooks = [layer.register_forward_hook(measure) for layer in layers]
        tensors = (*self.named_parameters(), *self.named_buffers())
        state = {name: tensor.to("meta") for name, tensor in tensors}
        self.eval()
        torch.func.functional_call(self, state, torch.empty(1, 3, *size, device="meta"))
        for hook in hooks:
            hook.remove()
        return 2 * largest / math.prod(size)

    def layer(self, name: str) -> nn.Module:
        """The layer that has this name in the state dict."""
        return self.get_submodule(name)

    def keyed_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters by their keys in the state dict."""
        tensors = self.state_dict(keep_vars=True)
        return {key: tensor for key, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}

    def _fill(self, deviations: Mapping[str, float]) -> None:
        """Fills layers, gaussian weights and zero biases, and notes them as new; of deviation 0 it only notes them.

        On the meta device nothing is filled: there torch would import its compiler for it, which takes seconds.
        """
        self.new_layers |= deviations
        for name, std in deviations.items():
            for kind, parameter in self.layer(name).named_parameters():
                if std and not parameter.is_meta:
                    nn.init.normal_(parameter, std=std) if kind == "weight" else nn.init.zeros_(parameter)


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


def relu(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)
