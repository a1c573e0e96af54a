"""Recipes of Attention to Scale, with the settings of the authors' own configurations.

The authors' nets are in the folders `vgg128_noup_pool3_20M_largewin*` (LargeFOV and share-nets) and
`vgg128_ms_pool3_20M_largewin*` (with the skip-net) of the experiments voc12, voc10_part and coco.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from a2s_repro.models import AttentionHead
from a2s_repro.recipes.published import CELLS, PUBLISHED
from a2s_repro.recipes.recipe import Recipe

SCALES = {"2": (1, 0.5), "3": (1, 0.75, 0.5), "4": (1, 0.75, 0.5, 0.25)}

VOC12: dict[str, Any] = {}
VOC12_COCO = {"init": "coco/largefov", "ours": ("init",)}
PERSON_PART = {
    "dataset": "person_part",
    "num_classes": 7,
    "classifier": "fc8_voc10_part",
    "training_set": "list/train.txt",
}
COCO_SUBSET = {
    "dataset": "coco_subset",
    "num_classes": 91,
    "classifier": "fc8_coco",
    "training_set": "list/train_small.txt",
    "evaluation_set": "list/val_small.txt",
    "test_crop": 641,
}

COCO = COCO_SUBSET | {
    "dataset": "coco",
    "training_set": "list/train.txt",
    "ours": ("training_set", "batch_size", "iter_size", "max_iter", "stepsize"),
}
"""All of train2014: "DeepLab-LargeFOV, has been pretrained on the MS-COCO 2014 dataset" (Section 4.2). The images of
val2014 are left for validation, as in Section 4.3. The schedule is that of the subset."""

BATCHES = {"attention": (3, 10), "average": (10, 3), "max": (10, 3)}
"""(images per pass, passes per update). Either way an update sees 30 images, but the loss of a pass is normalised by
the valid pixels of that pass."""

NO_CONFIGURATION = {"ours": ("batch_size", "iter_size")}
"""Settings of nets that the authors' release lacks; the batches are those of the same nets in other experiments."""

EXCEPTIONS: dict[str, dict[str, Any]] = {
    **{f"voc12/{cell}": NO_CONFIGURATION for cell in CELLS if cell.startswith("max")},
    "voc12/average2_esupv": {"lr_mult": {"fc8": 1}, "ours": ("lr_mult",)},
    "person_part/max2": {"batch_size": 5, "iter_size": 6},
    **{f"person_part/{cell}": {"batch_size": 15, "iter_size": 2} for cell in ("max2_esupv", "max3", "max3_esupv")},
    **{
        f"voc12_msc/{cell}": {"ours": ("init", "batch_size", "iter_size")}
        for cell in CELLS
        if not cell.startswith("attention")
    },
}
"""Settings of cells that differ from the rest of their table."""


def a2s_recipes() -> list[Recipe]:
    """The paper's recipes; a recipe comes after the one it starts from."""
    val = {recipe.name: recipe for recipe in (*_tables(), *_design_choices())}
    best = val["voc12_coco/attention3_esupv"]
    scale_augmented = dataclasses.replace(
        best,
        name="voc12_coco/attention3_esupv_scaleaug",
        published=(),
        scale_augmentation=(0.6, 1.4),
        ours=(*best.ours, "scale_augmentation"),
    )
    crf = {"bi_w": 4, "bi_xy_std": 49, "bi_rgb_std": 5}
    crf_of_largefov = {"bi_w": 5, "bi_xy_std": 69, "bi_rgb_std": 5}
    test = [
        _second_stage(name, val[f"voc12/{name}"])
        for name in ("largefov", "msc_largefov", "average3_esupv", "max3_esupv", "attention3_esupv")
    ]
    return [
        *val.values(),
        scale_augmented,
        *test,
        _second_stage("coco_crf_largefov", val["voc12_coco/largefov"], ("pool5a",), crf=crf_of_largefov),
        _second_stage("coco_crf_msc_largefov", val["voc12_coco/msc_largefov"], ("crf",), crf=crf_of_largefov),
        _second_stage("coco_crf_attention", best, crf=crf),
        _second_stage("coco_crf_attention_scaleaug", scale_augmented, crf=crf),
    ]


def _tables() -> Iterator[Recipe]:
    """Tables 1, 3 and 5 to 7, the skip-nets of the text, the unprinted tables, and the nets that these start from."""
    yield _recipe("coco/largefov", **COCO, batch_size=15, iter_size=2)
    for group, dataset, (batch_size, iter_size) in (
        ("person_part", PERSON_PART, (10, 3)),
        ("coco_subset", COCO_SUBSET, (15, 2)),
        ("voc12", VOC12, (15, 2)),
        ("voc12_coco", VOC12_COCO, (15, 2)),
    ):
        yield _recipe(f"{group}/largefov", **dataset, batch_size=batch_size, iter_size=iter_size)
        yield from _cells(group, dataset)
        skip_net = {**dataset, "skip_net": True, "ours": ("init",)}
        yield _recipe(
            f"{group}/msc_largefov",
            **skip_net | {"init": f"{group}/largefov"},
            pool5a=group != "coco_subset",
            batch_size=10,
            iter_size=3,
        )
        if group != "voc12_coco":
            yield from _cells(f"{group}_msc", skip_net | {"init": f"{group}/msc_largefov"})
    yield from _published_deeplab()


def _published_deeplab() -> Iterator[Recipe]:
    """DeepLab's own nets with pool5a, for which Section 4.2 cites 62.25 and 64.21.

    LargeFOV has the settings of the published DeepLab v1 model, 30 images in one pass. MSc is the net of this paper's
    release, which has pool5a, on a trunk that was trained with it; `voc12/msc_largefov` freezes one that was not.
    """
    yield _recipe("voc12/largefov_pool5a", pool5a=True, batch_size=30, iter_size=1)
    start = {"init": "voc12/largefov_pool5a", "ours": ("init", "batch_size", "iter_size")}
    yield _recipe("voc12/msc_largefov_pool5a", **start, skip_net=True, pool5a=True, batch_size=10, iter_size=3)


def _cells(group: str, settings: dict[str, Any]) -> Iterator[Recipe]:
    """The cells of one result table. With the skip-net, attention also trains on 10 images per pass."""
    for cell in CELLS:
        merge = cell.removesuffix("_esupv")[:-1]
        batch_size, iter_size = (10, 3) if settings.get("skip_net") else BATCHES[merge]
        yield _recipe(
            f"{group}/{cell}",
            **settings
            | {"batch_size": batch_size, "iter_size": iter_size}
            | _share_net(cell)
            | EXCEPTIONS.get(f"{group}/{cell}", {}),
        )


def _share_net(cell: str) -> dict[str, Any]:
    """The recipe fields encoded in a cell's name."""
    name = cell.removesuffix("_esupv")
    return {"merge": name[:-1], "scales": SCALES[name[-1]], "extra_supervision": name != cell}


def _design_choices() -> Iterator[Recipe]:
    """Section 4.1, "Design choices": other attention heads and a fourth scale, on PASCAL-Person-Part.

    For one layer and for a 1x1 kernel the authors' release has only trials of 1200 iterations. The recipes train both
    as long as the net with which the paper compares them.
    """
    common = PERSON_PART | _share_net("attention3_esupv")
    for filters in (64, 128, 256, 768, 1024):
        yield _recipe(f"person_part/attention3_esupv_{filters}", **common, att_conv1=filters)
    trained_as_compared = ("batch_size", "iter_size", "max_iter", "stepsize")
    one_layer, kernel_1 = AttentionHead(layers=1), AttentionHead(kernel=1)
    yield _recipe("person_part/attention3_esupv_one_layer", **common, head=one_layer, ours=trained_as_compared)
    yield _recipe("person_part/attention3_esupv_1x1", **common, head=kernel_1, ours=trained_as_compared)
    fc6, fc8 = AttentionHead(features="fc6"), AttentionHead(features="fc8")
    yield _recipe("person_part/attention3_esupv_fc6", **common, head=fc6)
    yield _recipe("person_part/attention3_esupv_fc8", **common, head=fc8, batch_size=15, iter_size=2)
    yield _recipe("person_part/attention4_esupv", **PERSON_PART, **_share_net("attention4_esupv"))


def _second_stage(name: str, first: Recipe, ours: tuple[str, ...] = (), **fields: Any) -> Recipe:
    """A row of Table 4, VOC's test server: fine-tunes the first stage's weights on train_aug and val (solver2).

    It is not known whether the authors' second stage started from other weights (an init2.caffemodel).
    """
    return dataclasses.replace(
        first,
        name=f"voc12_test/{name}",
        published=PUBLISHED[f"voc12_test/{name}"],
        init=first.name,
        ours=tuple(dict.fromkeys((*first.ours, "init", *ours))),
        training_set="list/trainval_aug.txt",
        evaluation_set="list/test.txt",
        hidden_labels=True,
        max_iter=8000,
        **fields,
    )


def _recipe(name: str, **fields: Any) -> Recipe:
    return Recipe(name, PUBLISHED.get(name, ()), **fields)
