"""Recipes of DeepLab v2, the direct descendant of Attention to Scale, apart from the tables of this project's papers.

Chen et al., DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully Connected
CRFs (arXiv:1606.00915), with the settings of its published definitions and solvers for VGG-16 and ResNet-101. Its
Tables 3 and 4 give scores on VOC 2012 val without and with the CRF.
"""

from typing import Any

from a2s_repro.models import AttentionHead
from a2s_repro.models.deeplab import ASPP_L, ASPP_S
from a2s_repro.recipes.a2s import COCO
from a2s_repro.recipes.published import PUBLISHED
from a2s_repro.recipes.recipe import RESNET101, Recipe

SOLVER: dict[str, Any] = {
    "shared_decay": "once",
    "lr_policy": "poly",
    "power": 0.9,
    "max_iter": 20000,
    "average_loss": 20,
    "display": 20,
}
"""Of all nets; Caffe had begun to decay a shared weight once."""

CRF: dict[str, Any] = {"crf": {"bi_w": 4, "bi_xy_std": 49, "bi_rgb_std": 5}}
"""Of the published script; which parameters each score was reached with is not published."""

VGG16 = SOLVER | CRF | {"batch_size": 10, "iter_size": 1}

RESNET = SOLVER | {
    "backbone": "resnet101",
    "aspp": ASPP_L,
    "classifier": "fc1_voc12",
    "scales": (1, 0.75, 0.5),
    "merge": "max",
    "extra_supervision": True,
    "head": AttentionHead(features="res5c"),
    "batch_size": 1,
    "iter_size": 10,
    "base_lr": 2.5e-4,
    "scale_augmentation": (0.5, 1.5),
}
"""Ten images in an update, one in a pass. The definition draws the factor from 0.5, 0.75, 1, 1.25 and 1.5, the paper
states "from 0.5 to 1.5", which is what the field can say."""

PRETRAINING_OURS = ("training_set", "base_lr", "max_iter", "batch_size", "iter_size", "scale_augmentation")


def deeplab2_recipes() -> list[Recipe]:
    """Nets of Tables 3 and 4, the net that the latter start from, and attention in place of their maximum."""
    coco: dict[str, Any] = COCO | RESNET | {"classifier": "fc1_coco", "init": RESNET101, "ours": PRETRAINING_OURS}
    from_coco = RESNET | {"init": "deeplab2_coco/resnet101"}
    return [
        _recipe("deeplab2_voc12/largefov", ("crf", "pool5a"), **VGG16),
        _recipe("deeplab2_voc12/aspp_s", ("crf",), **VGG16, aspp=ASPP_S),
        _recipe("deeplab2_voc12/aspp_l", ("crf",), **VGG16, aspp=ASPP_L),
        Recipe("deeplab2_coco/resnet101", **coco),
        _recipe("deeplab2_voc12/resnet101", ("init", "crf"), **from_coco, **CRF),
        _recipe("deeplab2_voc12/resnet101_attention", ("init", "merge", "head"), **from_coco | {"merge": "attention"}),
    ]


def _recipe(name: str, ours: tuple[str, ...], **fields: Any) -> Recipe:
    return Recipe(name, PUBLISHED.get(name, ()), ours, **fields)
