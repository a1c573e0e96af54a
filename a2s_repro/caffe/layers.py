"""Layer names of the nets that convert, in the order of their files.

Modules have the Caffe layers' names, so that conversion matches names and compares shapes. Only the classifier's name
differs between experiments (`fc8_voc12`, `fc8_coco`, ...); it is module `fc8`. With atrous spatial pyramid pooling the
classifier consists of `fc8_voc12_1` .. `fc8_voc12_4`, modules `fc8_1` .. `fc8_4`, and on ResNet-101 of `fc1_voc12_c0`
.. `fc1_voc12_c3`, modules `fc1_c0` .. `fc1_c3`.
"""

import re

import torch
from torch import nn

from a2s_repro.models import DeepLabASPP, DeepLabMSc, DeepLabResNet101
from a2s_repro.models.resnet101 import BatchNorm, Scale
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


def _layers(net: nn.Module) -> tuple[str, ...]:
    """The layers with blobs, in the order of the file."""
    return tuple(name for name, layer in net.named_children() if isinstance(layer, nn.Conv2d | BatchNorm | Scale))


with torch.device("meta"):
    SKIP_NET = _layers(DeepLabMSc(1))
    """Shared layers of a skip-net: SHARED and the skip branches, each before the other readers of its source."""
    ASPP = _layers(DeepLabASPP(1))
    """Layers of VGG-16 with atrous spatial pyramid pooling, branch after branch."""
    RESNET101 = _layers(DeepLabResNet101(1))
    """Layers of DeepLab v2 on ResNet-101."""

ATTENTION = ("att_conv1", "att_conv2", "att_fc")

FUSION = "fc8_fusion"
FUSION_TYPE = {"attention": "Eltwise", "average": "Power", "max": "Eltwise"}
"""Type of layer fc8_fusion by merge: SUM of the weighted maps, Power that scales their SUM, or MAX."""

_BRANCH = re.compile(r"(?P<classifier>fc8|fc1)(?P<name>_.+?)?(?P<branch>_[1-9]|_c[0-9])")


class System:
    """How the files of one kind of net name their layers.

    Args:
        shared: the layers of a stream, in the order of the file.
        classifier: the module that scores, or the prefix of those that do.
        fusion: layer that merges the scales.
        ignored: layers of a classifier of ImageNet, which are no part of the net.
    """

    def __init__(self, shared: tuple[str, ...], classifier: str, fusion: str, ignored: tuple[str, ...] = ()) -> None:
        self.shared, self.classifier, self.fusion, self.ignored = shared, classifier, fusion, ignored
        self.modules = (*dict.fromkeys((*shared, *ATTENTION)),)
        """All layers with blobs, in order; in a share-net the attention's exist once."""
        self.trunk = tuple(name for name in shared if not name.startswith(classifier) and name not in SKIP_LAYERS)
        self.branches = any(name not in (classifier, *self.trunk, *SKIP_LAYERS) for name in shared)

    def module_of(self, name: str) -> str:
        """The module of a layer name without its stream's suffix."""
        if not self.branches:
            return self.classifier if name.startswith(f"{self.classifier}_") else name
        branch = _BRANCH.fullmatch(name)
        return f"{branch['classifier']}{branch['branch']}" if branch else name

    def classifier_of(self, name: str) -> str:
        """Caffe's name of the whole classifier: `fc8_voc12` for the layer `fc8_voc12_1`."""
        branch = _BRANCH.fullmatch(name) if self.branches else None
        return f"{branch['classifier']}{branch['name'] or ''}" if branch else name

    def layer_of(self, module: str, classifier: str, suffix: str = "") -> str:
        """The layer name of a module in the stream of `suffix`; `classifier` is Caffe's name of the classifier.

        DeepLab v2 writes the stream before the branch: `fc1_voc12_res05_c0`.
        """
        if module in self.trunk or not module.startswith(self.classifier):
            return f"{module}{suffix}"
        return f"{classifier}{suffix}{module.removeprefix(self.classifier)}"


VGG16 = System((*dict.fromkeys((*SKIP_NET, *SHARED)),), "fc8", FUSION)
VGG16_ASPP = System(ASPP, "fc8", FUSION)
RESNET = System(RESNET101, "fc1", "fc_fusion", ignored=("fc1000",))


def system_of(names: set[str]) -> System:
    """The system that has layers of these names, which are without the suffix of a stream."""
    if any(re.fullmatch(r"res[2-5][a-z]\d*_branch.*", name) for name in names):
        return RESNET
    return VGG16_ASPP if any(re.fullmatch(r"fc6_[1-9]", name) for name in names) else VGG16


def kinds_of(module: str) -> tuple[str, ...]:
    """The tensors of a module, in the order of its layer's blobs."""
    if module.startswith("bn"):
        return ("mean", "variance", "scale_factor")
    bare = module == "conv1" or module.startswith("res")
    return ("weight",) if bare else ("weight", "bias")


def type_of(module: str) -> str:
    """The type of a module's layer."""
    return "BatchNorm" if module.startswith("bn") else "Scale" if module.startswith("scale") else "Convolution"
