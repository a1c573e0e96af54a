"""The layers of the authors' nets by name, in the order of their files.

Modules are named as the authors name their layers, so that converting is matching names and comparing shapes. One
layer has a name of its own in every experiment: the classifier, `fc8_voc12`, `fc8_coco` ..., is module `fc8`.
"""

import torch
from torch import nn

from a2s_repro.models import DeepLabMSc
from a2s_repro.models.side_branches import SIDE_LAYERS

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
"""What a skip-net shares: the same with the side branches between, each before what else reads its source."""

ATTENTION = ("att_conv1", "att_conv2", "att_fc")
MODULES = (*SHARED, *SIDE_LAYERS, *ATTENTION)

FUSION = "fc8_fusion"
FUSION_TYPE = {"attention": "Eltwise", "average": "Power", "max": "Eltwise"}
"""The type of layer fc8_fusion by merge: SUM of the weighted maps, Power that scales their SUM, or MAX."""


def module_of(name: str) -> str:
    """The module that a layer's name, without its branch's suffix, stands for."""
    return "fc8" if name.startswith("fc8_") else name
