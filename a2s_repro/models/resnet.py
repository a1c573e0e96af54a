"""ResNet34-dilated8: the net of Attention to Refine's ADE20K experiments, at one scale or several.

The encoder's layers and state dict keys are torchvision's, with the first layers of CSAILVision/
semantic-segmentation-pytorch by choice.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from a2s_repro.errors import InputError, check_known, first_line
from a2s_repro.files import check_published, refuse_foreign
from a2s_repro.models.attention import ON_LAYER4, AttentionHead
from a2s_repro.models.base import ParameterRule, Prediction, Stream, Widths, relu
from a2s_repro.models.layers import Conv2d
from a2s_repro.models.psp import PyramidPooling, c1
from a2s_repro.models.refine import RefineHead
from a2s_repro.models.share_net import MultiScale

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
"""Maps of the encoder: of the first layers on the 1/2 grid, and of the four groups of blocks on 1/4, 1/8, 1/8, 1/8."""

DECODERS = ("c1", "psp")
STEMS = {"deep64": 64, "deep128": 128, "plain": 64}
"""Channels that the first layers give. deep64: three 3x3 convolutions of 64 filters, as CSAILVision's revision of 2017
that has ResNet34-dilated8 (e94bc36); deep128: 64, 64 and 128, as theirs from March 2018; plain: torchvision's 7x7."""
NORMS = {"batch": nn.BatchNorm2d, "sync": nn.SyncBatchNorm}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and the sum with the input, projected where its channels differ.

    Source: He et al., Deep Residual Learning, with dilations in place of strides where the net has them.
    """

    def __init__(
        self, inputs: int, outputs: int, norm: type[nn.Module], stride: int, dilations: tuple[int, int]
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride, dilations[0])
        self.bn1 = norm(outputs)
        self.conv2 = conv3x3(outputs, outputs, 1, dilations[1])
        self.bn2 = norm(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))) + residual)


class ResNetDilated8(MultiScale):
    """ResNet-34 at output stride 8, and a decoder, applied to the image at one scale or at several.

    layer3 and layer4 keep the resolution: their first convolution loses its stride, and the others are dilated by 2 and
    4, as are the first of layer4 by 2. Images are RGB, normalised as ImageNet is for torchvision's nets. Over scales,
    the same weights and batch normalisations run on each, so that running statistics see the images of all scales.

    The encoder starts random (He, over the outputs), for `load_resnet34` to fill. The decoder starts as CSAILVision's
    did: convolutions gaussian with standard deviation 0.001, the scales of batch normalisations around 1 with 0.02. Of
    the attention the last layers start with 0.01, so that the weights of the scales are nearly even, and the others by
    He's rule over their inputs. Biases start at 0.

    Args:
        num_classes: C, background included.
        scales: 1 alone, or two or more of 1, 0.75, 0.5, 0.25, in descending order.
        merge: "attention", "hierarchical", "average" or "max"; None for one scale.
        head: description of the head, for attention of either kind. It reads layer4, or for a `RefineHead` any of
            STAGES.
        decoder: "c1", a 1x1 convolution, or "psp", pyramid pooling.
        stem: the first layers, one of STEMS. "deep" is read as deep128, whose name it was in files of version 0.1.
        width: factor on all widths; other than 1 it makes a thin copy of the net.
        batch_norm: "batch", over the images of a process, or "sync", over those of all processes (on CUDA alone).
        dropout: drop ratio in the head.

    Raises:
        InputError: a value that is not possible.
    """

    normalization = "torchvision"

    def __init__(
        self,
        num_classes: int,
        scales: tuple[float, ...] = (1,),
        merge: str | None = None,
        *,
        head: AttentionHead | RefineHead = ON_LAYER4,
        decoder: str = "c1",
        stem: str = "deep64",
        width: float = 1,
        batch_norm: str = "batch",
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_classes, dropout)
        stem = "deep128" if stem == "deep" else stem
        check_known("decoder", decoder, DECODERS)
        check_known("stem", stem, STEMS)
        check_known("batch_norm", batch_norm, NORMS)
        self.head_config, self.decoder_kind, self.stem = head, decoder, stem
        self.width, self.batch_norm, self.widths = width, batch_norm, Widths().scaled(width)
        norm = NORMS[batch_norm]
        self.channels = {
            stage: max(1, round(outputs * width))
            for stage, outputs in zip(STAGES, (STEMS[stem], 64, 128, 256, 512), strict=True)
        }
        outputs, last = self.channels["stem"], self.channels["layer4"]
        if stem != "plain":
            inner = self.channels["layer1"]
            self.conv1, self.bn1 = conv3x3(3, inner, stride=2), norm(inner)
            self.conv2, self.bn2 = conv3x3(inner, inner), norm(inner)
            self.conv3, self.bn3 = conv3x3(inner, outputs), norm(outputs)
        else:
            self.conv1, self.bn1 = nn.Conv2d(3, outputs, 7, stride=2, padding=3, bias=False), norm(outputs)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._blocks("layer1", 3, norm)
        self.layer2 = self._blocks("layer2", 4, norm, stride=2)
        self.layer3 = self._blocks("layer3", 6, norm, dilation=2)
        self.layer4 = self._blocks("layer4", 3, norm, dilation=4)
        self.encoder_layers = tuple(name for name, _ in self.named_children())
        """Layers that come from a classifier of ImageNet; the others are new."""
        self.decoder = (
            PyramidPooling(last, num_classes, max(1, round(512 * width)), norm)
            if decoder == "psp"
            else c1(last, num_classes)
        )
        if merge is not None or tuple(scales) != (1,):
            self._merge_scales(tuple(scales), merge, head)

        for name in self.encoder_layers:
            for layer in self.get_submodule(name).modules():
                if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        start_new_layers(self)

    def _blocks(
        self, name: str, count: int, norm: type[nn.Module], stride: int = 1, dilation: int = 1
    ) -> nn.Sequential:
        """A group of `count` blocks. The first convolution of a dilated one, which had a stride, is dilated by half."""
        inputs, outputs = self.channels[STAGES[STAGES.index(name) - 1]], self.channels[name]
        blocks = [BasicBlock(inputs, outputs, norm, stride, (max(1, dilation // 2), dilation))]
        blocks += [BasicBlock(outputs, outputs, norm, 1, (dilation, dilation)) for _ in range(count - 1)]
        return nn.Sequential(*blocks)

    def map_channels(self) -> dict[str, int]:
        return dict(self.channels)

    def stream(self, image: Tensor) -> Stream:
        """The net on a batch (N, 3, H, W) at one scale; the maps are those of `head_maps`."""
        x = relu(self.bn1(self.conv1(image)))
        if self.stem != "plain":
            x = relu(self.bn2(self.conv2(x)))
            x = relu(self.bn3(self.conv3(x)))
        maps = {"stem": x} if "stem" in self.head_maps else {}
        x = self.maxpool(x)
        for name in STAGES[1:]:
            x = self.get_submodule(name)(x)
            if name in self.head_maps:
                maps[name] = x
        return Stream(maps, self.decoder(x))

    def forward(self, image: Tensor) -> Prediction:
        if self.batch_norm == "sync" and self.training and not image.is_cuda and _is_distributed():
            raise InputError(
                "batch_norm 'sync' takes its statistics over CUDA devices, and the images are on the "
                f"{image.device.type}: give batch_norm 'batch', over the images of each process."
            )
        return super().forward(image)

    def parameter_rules(self, lr_mult: Mapping[str, float] | None = None) -> dict[str, ParameterRule]:
        """The rule of every parameter by its key in the state dict.

        The decoder and the attention learn at ten times the rate of the encoder. Biases and batch normalisations learn
        at the rate of the weights and do not decay. `lr_mult` gives layers, by the first part of their names, other
        multipliers.
        """
        return encoder_rules(self, lr_mult)

    def config(self) -> dict:
        return {
            "net": type(self).__name__,
            "num_classes": self.num_classes,
            "scales": list(self.scales),
            "merge": self.merge,
            "head": self.head_config.config(),
            "decoder": self.decoder_kind,
            "stem": self.stem,
            "width": self.width,
            "batch_norm": self.batch_norm,
            "dropout": self.dropout,
        }


def start_new_layers(net: Any) -> None:
    """Fills the decoder and the head of a net, as CSAILVision fills its decoders (see `ResNetDilated8`)."""
    for name, layer in net.named_modules():
        part = name.partition(".")[0]
        if not isinstance(layer, nn.Conv2d) or part in net.encoder_layers:
            continue
        std = 0.01 if name.endswith("_fc") else math.sqrt(2 / layer.weight[0].numel())
        net._fill({name.removeprefix("head."): 0.001 if part == "decoder" else std})
    for layer in net.decoder.modules():  # after all convolutions, whose values do not depend on these
        if isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm) and not layer.weight.is_meta:
            nn.init.normal_(layer.weight, 1, 0.02)


def encoder_rules(net: Any, lr_mult: Mapping[str, float] | None) -> dict[str, ParameterRule]:
    """The rules of a net whose encoder is trained already: its other layers learn at ten times the rate, biases and
    normalisations do not decay. `lr_mult` gives layers, by the first part of their names, other multipliers."""
    rules = {}
    for name, parameter in net.keyed_parameters().items():
        layer = name.partition(".")[0]
        mult = (lr_mult or {}).get(layer, 1 if layer in net.encoder_layers else 10)
        shared_by = 1 if layer in net.unshared_layers else len(net.scales)
        rules[name] = ParameterRule(mult, 1 if parameter.dim() > 1 and mult else 0, shared_by)
    return rules


def load_resnet34(net: ResNetDilated8, path: str | os.PathLike) -> str:
    """Fills the encoder from a classifier's state dict, and says in a sentence what was loaded.

    Args:
        net: gets the layers; its decoder and attention stay as they are.
        path: state dict of ResNet-34 as torchvision has it (stem "plain"), or as CSAILVision had it in 2017 ("deep64")
            or 2018 ("deep128"), written by torch.save or as `.safetensors`. Its `fc` is not used.

    Raises:
        InputError: the file is damaged, or is another net's.
    """
    state = read_state(path, "a ResNet-34")
    ours = {k: v for k, v in net.state_dict().items() if k.partition(".")[0] in net.encoder_layers}
    theirs = {key: tensor for key, tensor in state.items() if key.partition(".")[0] != "fc"}
    remedy = "give the state dict of a ResNet-34"
    if (stem := _stem_of(theirs)) not in (None, net.stem):
        raise InputError(
            f"{path} has the first layers of stem '{stem}', and the net those of '{net.stem}': give --stem {stem}."
        )
    missing = [key for key in ours if key not in theirs and not key.endswith("num_batches_tracked")]  # of torch 0.4.1
    if missing or not theirs.keys() <= ours.keys():
        other = f"lacks {missing[0]}" if missing else f"has {next(key for key in theirs if key not in ours)} besides"
        raise InputError(f"{path} {other}, so it is not the encoder of this net: {remedy}.")
    for key, tensor in theirs.items():
        if tensor.shape != ours[key].shape:
            shapes = ["x".join(map(str, t.shape)) for t in (tensor, ours[key])]
            raise InputError(f"{path}: {key} is {shapes[0]}, but the net's is {shapes[1]}: {remedy} as wide as it.")
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {key} has values that are not finite, so the file is damaged: get it again.")
    net.load_state_dict(theirs, strict=False)
    fresh = sorted({name.partition(".")[0] for name in net.keyed_parameters()} - set(net.encoder_layers))
    unused = "; fc of the file not used" if len(theirs) < len(state) else ""
    return f"ResNet-34 with stem '{net.stem}' loaded from {path}{unused}; {', '.join(fresh)} new"


def _stem_of(state: dict[str, Tensor]) -> str | None:
    """The stem whose layers a state dict of ResNet-34 has, at any width; None for another net's."""
    if "conv1.weight" not in state or "layer1.0.conv1.weight" not in state:
        return None
    if "conv3.weight" not in state:
        return "plain"
    return "deep128" if "layer1.0.downsample.0.weight" in state else "deep64"


def read_state(path: str | os.PathLike, of: str) -> dict[str, Tensor]:
    """The state dict in a file of torch.save or `.safetensors`; `of` names its net in errors, which are InputErrors."""
    refuse_foreign(path)
    try:
        if Path(path).suffix == ".safetensors":
            state = load_file(path)
        else:
            check_published(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpicklers raise nearly anything on a damaged file
        raise InputError(
            f"{path} cannot be read ({first_line(error)}): it is damaged, or no state dict of torch."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()) or not state:
        raise InputError(f"{path} holds other things than named tensors: give {of}'s state dict alone.")
    return state


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def conv3x3(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the size but for its stride."""
    return Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)
