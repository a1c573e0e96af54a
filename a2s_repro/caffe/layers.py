"""Layer names of the authors' nets, in the order of their files.

Modules have the authors' layer names, so that conversion matches names and compares shapes. Only the classifier's name
differs between experiments (`fc8_voc12`, `fc8_coco`, ...); it is module `fc8`.
"""

import torch
from torch import nn

from a2s_repro.models import DeepLabMSc
from a2s_repro.models.skip_branches import SKIP_LAYERS

LAYERS_OF_WIDTH = {
    "conv1": ("conv1_1", "conv1_2"),
    "conv2": ("conv2_1", "conv2_2"),
    "conv3": ("conv3_1", "conv3_2", "conv3_3"),
    "conv4": ("conv4_1", "conv4_2", "conv4_3"),
    "conv5": ("conv5_1", "conv5_2", "conv5_3"),
    "fc6": ("fc6",),
    "fc7": ("fc7",),
}
"""The trunk: the layers of each width, in the order of the net."""

TRUNK = tuple(layer for layers in LAYERS_OF_WIDTH.values() for layer in layers)
SHARED = (*TRUNK, "fc8")

with torch.device("meta"):
    SKIP_NET = tuple(name for name, layer in DeepLabMSc(1).named_children() if isinstance(layer, nn.Conv2d))
"""Shared layers of a skip-net: SHARED and the skip branches, each before the other readers of its source."""

ATTENTION = ("att_conv1", "att_conv2", "att_fc")
MODULES = (*SHARED, *SKIP_LAYERS, *ATTENTION)

FUSION = "fc8_fusion"
FUSION_TYPE = {"attention": "Eltwise", "average": "Power", "max": "Eltwise"}
"""Type of layer fc8_fusion by merge: SUM of the weighted maps, Power that scales their SUM, or MAX."""


def module_of(name: str) -> str:
    """The module of a layer name without its stream's suffix."""
    return "fc8" if name.startswith("fc8_") else name
