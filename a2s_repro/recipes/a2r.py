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
    "short_sides": (300, 400, 500, 600),
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
    *("init", "stem", "crop", "scale_augmentation", "fill_crop", "test_crop", "short_sides"),
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
        _refine("multi_stage", RefineHead(dilations=(1, 1), recalibration=None)),
        _refine("multi_stage_dilation", RefineHead(recalibration=None)),
        _refine("refine", RefineHead()),
        _refine("refine_bias", RefineHead(recalibration="add")),
        _refine("refine_other_reading", RefineHead(dilations=(12, 2))),
        _ade20k("resnet34"),
        _ade20k("attention", ("head", "dropout"), **ATTENTION),
        _ade20k("psp", decoder="psp"),
        _ade20k("refine", REFINE_OURS, **ATTENTION, **refine),
        _ade20k("refine_psp", REFINE_OURS, **ATTENTION, **refine, decoder="psp"),
    ]


def _voc12(cell: str, ours: tuple[str, ...] = (), **fields: Any) -> Recipe:
    """A row of Tables 1 and 2, on VGG-16."""
    name = f"a2r_voc12/{cell}"
    return Recipe(name, PUBLISHED.get(name, ()), (*VOC12_OURS, *ours), **VOC12 | fields)


def _refine(cell: str, head: RefineHead) -> Recipe:
    return _voc12(cell, REFINE_OURS, **ATTENTION, head=head)


def _ade20k(cell: str, ours: tuple[str, ...] = (), **fields: Any) -> Recipe:
    """A row of Table 3, on ResNet34-dilated8."""
    name = f"a2r_ade20k/{cell}"
    return Recipe(name, PUBLISHED.get(name, ()), (*ADE20K_OURS, *ours), **ADE20K | fields)
