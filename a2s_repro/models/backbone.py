"""A net of any backbone at several scales: `a2s_repro.multi_scale` and `a2s train --backbone`."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2s_repro.errors import InputError, check_known, first_line
from a2s_repro.models.attention import AttentionHead
from a2s_repro.models.base import ParameterRule, Stream, Widths
from a2s_repro.models.named_backbone import PACKAGES, is_named, named_backbone
from a2s_repro.models.psp import PyramidPooling, c1
from a2s_repro.models.refine import RefineHead
from a2s_repro.models.resnet import DECODERS, encoder_rules, start_new_layers
from a2s_repro.models.share_net import RESAMPLING, MultiScale, grid_step

STRIDES = (4, 8, 16, 32)
PROBED = 257
"""Side of the images that a backbone is probed with: 32k + 1, as all strides need."""

ON_BACKBONE = AttentionHead(features="backbone")


class Probe(NamedTuple):
    """What a backbone does to an image of k * stride + 1 pixels."""

    channels: tuple[int, ...]
    """Of its maps."""
    stride: int
    """Pixels per cell of the last map."""
    padding: tuple[int, int]
    """Pixels before and after the image with which the last map has k + 1 cells; (0, 0) for most convolutional nets."""


class BackboneNet(MultiScale):
    """A backbone, of a package or of one's own, applied to the image at several scales, its score maps merged.

    The last map of the backbone is what the decoder scores and what the attention reads, at every scale; all scales
    share the weights. A backbone that cuts the image into patches, such as ConvNeXt, gets the image padded by half a
    patch, so that the cells of all scales lie on the same pixels. Images are RGB, normalised as ImageNet is for
    torchvision's nets. Merged scores have the grid of the finest scale, or of scale 1 if that is finer.

    Args:
        backbone: a module (N, 3, H, W) -> (N, channels, h, w), or a list, tuple or dict of maps, of which the last is
            scored; the others are `map0`, `map1` ... for a `RefineHead`. Its stride is 4, 8, 16 or 32. Or the name of a
            package's net (`named_backbone`), with random weights; a net of one can be built from its `config`.
        num_classes: C, background included.
        scales: two or more of 2, 1.5, 1.25, 1, 0.75, 0.5, 0.25, in descending order, or 1 alone.
        merge: "attention", "hierarchical", "average" or "max"; None for one scale.
        head: description of the head, for attention of either kind: it reads `backbone`.
        output_stride: pixels per cell of the last map: for a name 8, 16 or 32, by default 8; a module has its own.
        decoder: "c1", a 1x1 convolution, or "psp", pyramid pooling.
        width: factor on the channels of decoder and head.
        dropout: drop ratio in the head.

    Raises:
        InputError: a value that is not possible, or a backbone whose maps do not fit a grid.
    """

    normalization = "torchvision"
    possible_scales = tuple(RESAMPLING)

    def __init__(
        self,
        backbone: nn.Module | str,
        num_classes: int,
        scales: tuple[float, ...] = (1, 0.5),
        merge: str | None = "attention",
        *,
        head: AttentionHead | RefineHead = ON_BACKBONE,
        output_stride: int | None = None,
        decoder: str = "c1",
        width: float = 1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_classes, dropout)
        check_known("decoder", decoder, DECODERS)
        self.backbone_name = _name_of(backbone)
        if is_named(backbone):
            output_stride = output_stride or 8
            backbone = named_backbone(backbone, output_stride)
        elif not isinstance(backbone, nn.Module):
            names = " or ".join(f"{package}:NAME" for package in PACKAGES)
            raise InputError(
                f"the backbone {backbone} is neither {names} nor a module: pass the module, to load a file of its net "
                "by a2s_repro.load(FILE, backbone=MODULE)."
            )
        probe = probed(backbone)
        if output_stride not in (None, probe.stride):
            raise InputError(
                f"the backbone {self.backbone_name} has stride {probe.stride}, not {output_stride}: give that output "
                "stride, or another net."
            )
        self.channels = {f"map{index}": channels for index, channels in enumerate(probe.channels)}
        self.channels["backbone"] = probe.channels[-1]
        self.padding, self.output_stride, self.stride = probe.padding, probe.stride, probe.stride
        self.grid_step = grid_step((1,), probe.stride)
        self.head_config, self.decoder_kind, self.width = head, decoder, width
        self.widths = Widths().scaled(width)
        self.backbone = backbone
        self.encoder_layers = ("backbone",)
        last = probe.channels[-1]
        self.decoder = (
            PyramidPooling(last, num_classes, max(1, round(512 * width)), nn.BatchNorm2d)
            if decoder == "psp"
            else c1(last, num_classes)
        )
        if merge is not None or tuple(scales) != (1,):
            self._merge_scales(tuple(scales), merge, head)
        start_new_layers(self)

    def map_channels(self) -> dict[str, int]:
        return dict(self.channels)

    def stream(self, image: Tensor) -> Stream:
        """The net on a batch (N, 3, H, W) at one scale; the maps are those of the backbone."""
        maps = maps_of(self.backbone(F.pad(image, 2 * self.padding) if any(self.padding) else image))
        named = {f"map{index}": x for index, x in enumerate(maps)} | {"backbone": maps[-1]}
        return Stream({name: named[name] for name in self.head_maps}, self.decoder(maps[-1]))

    def parameter_rules(self, lr_mult: Mapping[str, float] | None = None) -> dict[str, ParameterRule]:
        """The rule of every parameter by its key in the state dict: as for `ResNetDilated8`, whose encoder is here the
        backbone."""
        return encoder_rules(self, lr_mult)

    def config(self) -> dict:
        """Plain values; the backbone itself is not among them, so `build_model` takes one that has no name."""
        return {
            "net": type(self).__name__,
            "backbone": self.backbone_name,
            "output_stride": self.output_stride,
            "num_classes": self.num_classes,
            "scales": list(self.scales),
            "merge": self.merge,
            "head": self.head_config.config(),
            "decoder": self.decoder_kind,
            "width": self.width,
            "dropout": self.dropout,
        }


def _name_of(backbone: object) -> str:
    """The name of a backbone: a package's, or the class of a module."""
    if isinstance(backbone, nn.Module):
        return f"{type(backbone).__module__}.{type(backbone).__qualname__}"
    return str(backbone)


def probed(backbone: nn.Module) -> Probe:
    """The channels and the stride of a backbone, found on the meta device, where nothing is computed.

    Raises:
        InputError: its maps do not fit a grid of STRIDES, or it does not run on the meta device.
    """
    tensors = dict(backbone.named_parameters()) | dict(backbone.named_buffers())
    on_meta = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    training = backbone.training
    backbone.eval()  # batch normalisations keep their statistics
    try:
        for margin in (0, 1):  # of pixels that are left out: patches tile 256 pixels, not 257
            shape = (1, 3, PROBED - margin, PROBED - margin)
            image = torch.empty(shape, device="meta")
            maps = maps_of(torch.func.functional_call(backbone, on_meta, (image,)))
            cells = maps[-1].shape[-1] - (1 - margin)
            if maps[-1].dim() == 4 and cells and (PROBED - 1) % cells == 0 and (PROBED - 1) // cells in STRIDES:
                stride = (PROBED - 1) // cells
                padding = (stride // 2, stride - 1 - stride // 2) if margin else (0, 0)
                return Probe(tuple(each.shape[1] for each in maps), stride, padding)
    except InputError:
        raise
    except Exception as error:  # a module of a user's may raise anything
        raise InputError(
            f"the backbone does not run on an image of (N, 3, {PROBED}, {PROBED}) on the meta device "
            f"({first_line(error)}): give a module of convolutions that takes images of any size."
        ) from error
    finally:
        backbone.train(training)
    raise InputError(
        f"the backbone gives a map of {'x'.join(map(str, maps[-1].shape[1:]))} for an image of {PROBED - 1} pixels: "
        f"its stride must be one of {', '.join(map(str, STRIDES))}."
    )


def maps_of(output: object) -> list[Tensor]:
    """The maps that a backbone returned, alone, in a list or a tuple, or in a dict. Raises InputError for others."""
    if isinstance(output, Tensor):
        return [output]
    maps = list(output.values()) if isinstance(output, Mapping) else output
    if not isinstance(maps, list | tuple) or not maps or not all(isinstance(each, Tensor) for each in maps):
        raise InputError(f"the backbone returns {type(output).__name__}; it must return maps, (N, channels, h, w).")
    return list(maps)
