"""Recipes of Attention to Refine.

The authors published no code. A recipe's `ours` lists the settings that the paper leaves open;
docs/fidelity/choices.md gives the reasons for our values.
"""

from typing import Any

from a2s_repro.models import AttentionHead, RefineHead
from a2s_repro.recipes.published import PUBLISHED
from a2s_repro.recipes.recipe import RESNET34, Recipe

TRAINING: dict[str, Any] = {
    "solver": "torch",
    "uniform_layers": True,
    "shared_decay": "once",
    "lr_policy": "poly",
    "power": 0.9,
}
"""Section 3: PyTorch, the poly policy, and ten times the encoder's learning rate in the decoder."""

TRAINING_OURS = ("solver", "uniform_layers", "shared_decay")

TWO_SCALES: dict[str, Any] = {"scales": (1, 0.5)}
ATTENTION = TWO_SCALES | {"merge": "attention", "extra_supervision": True}

REFINE_OURS = ("head", "refine", "dropout")

READINGS = {
    "refine_other_reading": RefineHead(dilations=(12, 2)),
    "refine_conv3_to_conv5": RefineHead(stages=("conv3_3", "conv4_3", "conv5_3")),
    "refine_conv3_to_fc7": RefineHead(stages=("conv3_3", "conv4_3", "conv5_3", "fc7")),
    "refine_pools": RefineHead(stages=("pool1", "pool2", "pool3", "pool4", "pool5")),
    "refine_l2": RefineHead(normalization="l2"),
    "refine_batch_norm": RefineHead(normalization="batch"),
    "refine_recalibrated_streams": RefineHead(supervision="recalibrated"),
    "refine_merged_at_8": RefineHead(merge_stride=8),
}
"""The full method by other readings of the text, one at a time (docs/refine.md)."""

ABLATION = {
    "multi_stage": RefineHead(dilations=(1, 1), recalibration=None),
    "multi_stage_dilation": RefineHead(recalibration=None),
    "refine": RefineHead(),
}
"""Rows of Table 2 after the first."""

VOC12 = TRAINING | {"batch_size": 3, "iter_size": 10}
"""Table 1: "following the set of attention-to-scale"."""

VOC12_OURS = (*TRAINING_OURS, "batch_size", "iter_size", "max_iter")

ADE20K = TRAINING | {
    "dataset": "ade20k",
    "num_classes": 150,
    "classifier": "fc8",
    "training_set": "list/train.txt",
    "evaluation_set": "list/val.txt",
    "init": RESNET34,
    "backbone": "resnet34",
    "stem": "deep64",
    "head": AttentionHead(features="layer4"),
    "crop": 385,
    "scale_augmentation": (0.5, 1.5),
    "fill_crop": True,
    "test_crop": 1,
    "factors": (0.5, 0.75, 1, 1.25, 1.5),
    "batch_size": 16,
    "iter_size": 1,
    "base_lr": 1e-3,
    "max_iter": 100 * (20210 // 16),
    "weight_decay": 1e-4,
    "average_loss": 20,
    "display": 20,
    "snapshot": 5000,
}
"""Table 3, with the protocol of CSAILVision/semantic-segmentation-pytorch at the end of 2017, whose scores for
ResNet34-dilated8 and for PSP on it agree with the paper's baselines within 0.1."""

ADE20K_OURS = (
    *TRAINING_OURS,
    *("init", "stem", "crop", "scale_augmentation", "fill_crop", "test_crop", "factors"),
    *("batch_size", "iter_size", "base_lr", "max_iter", "momentum", "weight_decay"),
)

RESNET_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


def a2r_recipes() -> list[Recipe]:
    """The paper's recipes."""
    refine: dict[str, Any] = {"head": RefineHead(stages=RESNET_STAGES)}
    return [
        _voc12("largefov", batch_size=15, iter_size=2),
        *(
            _voc12(f"{merge}2", ("extra_supervision",), **TWO_SCALES, merge=merge, batch_size=10, iter_size=3)
            for merge in ("max", "average")
        ),
        _voc12("attention2_esupv", **ATTENTION),
        *(_refine(cell, head) for cell, head in ABLATION.items()),
        _refine("refine_bias", RefineHead(recalibration="add")),
        *(_refine(cell, head) for cell, head in READINGS.items()),
        _refine("refine_full_resolution", RefineHead(), label_stride=1),
        _voc12("attention2_esupv_labels4", ("label_stride",), **ATTENTION, label_stride=4),
        *(_refine(f"{cell}_labels4", head, label_stride=4) for cell, head in ABLATION.items()),
        _ade20k("resnet34"),
        _ade20k("attention", ("head", "dropout"), **ATTENTION),
        _ade20k("psp", decoder="psp"),
        _ade20k("refine", REFINE_OURS, **ATTENTION, **refine),
        _ade20k("refine_psp", REFINE_OURS, **ATTENTION, **refine, decoder="psp"),
        _ade20k("resnet34_full_resolution", label_stride=1),
        _ade20k("refine_full_resolution", REFINE_OURS, **ATTENTION, **refine, label_stride=1),
    ]


def _voc12(cell: str, ours: tuple[str, ...] = (), **fields: Any) -> Recipe:
    """A row of Tables 1 and 2, on VGG-16."""
    name = f"a2r_voc12/{cell}"
    return Recipe(name, PUBLISHED.get(name, ()), (*VOC12_OURS, *ours), **VOC12 | fields)


def _refine(cell: str, head: RefineHead, **fields: Any) -> Recipe:
    return _voc12(cell, (*REFINE_OURS, *fields), **ATTENTION, head=head, **fields)


def _ade20k(cell: str, ours: tuple[str, ...] = (), **fields: Any) -> Recipe:
    """A row of Table 3, on ResNet34-dilated8."""
    name = f"a2r_ade20k/{cell}"
    return Recipe(name, PUBLISHED.get(name, ()), (*ADE20K_OURS, *ours), **ADE20K | fields)
