"""Entry points of torch.hub: `torch.hub.load("FOLDER or OWNER/REPOSITORY", "load", "model.pth")`.

From a local folder: `torch.hub.load("FOLDER", "share_net", source="local", num_classes=21)`.
"""

import os
from typing import Any

import a2s_repro
from a2s_repro.errors import InputError
from a2s_repro.inference import Segmenter
from a2s_repro.models import DeepLabLargeFOV, Net, ResNetDilated8, ShareNet

dependencies = ["torch", "numpy", "scipy", "cv2", "google.protobuf", "PIL", "safetensors"]


def load(path: str | os.PathLike, device: str = "cpu") -> Segmenter:
    """The Segmenter of weights, a snapshot, a run, a .caffemodel or an exported net (see `a2s_repro.load`)."""
    return a2s_repro.load(path, device)


def deeplab_largefov(num_classes: int = 21, pretrained: bool = False, **options: Any) -> Net:
    """DeepLab-LargeFOV with random weights; options of `a2s_repro.models.DeepLabLargeFOV`."""
    _check_untrained(pretrained)
    return DeepLabLargeFOV(num_classes, **options)


def share_net(num_classes: int = 21, pretrained: bool = False, **options: Any) -> Net:
    """Attention to Scale with random weights, by default over the scales 1, 0.75 and 0.5; options of `ShareNet`."""
    _check_untrained(pretrained)
    return ShareNet(num_classes, **options)


def resnet_dilated8(num_classes: int = 150, pretrained: bool = False, **options: Any) -> Net:
    """The ResNet-34 of Attention to Refine with random weights; options of `ResNetDilated8`."""
    _check_untrained(pretrained)
    return ResNetDilated8(num_classes, **options)


def _check_untrained(pretrained: bool) -> None:
    if pretrained:
        raise InputError(
            "no trained weights are published for these nets: train one (docs/reproducing.md), or convert the authors' "
            ".caffemodel and give it to the entry point `load`."
        )
