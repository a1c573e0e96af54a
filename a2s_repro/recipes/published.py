"""The papers' published numbers, with their tables: of the systems of this project by recipe, of others by name.

The numbers are kept only here. `a2s` is Attention to Scale: its tables are `a2s:1` ... `a2s:7`; `a2s:text` are numbers
in its text; `a2s:unprinted` are tables in the source of the paper that were left out of the printed version. `a2r` is
Attention to Refine, with the tables `a2r:1`, `a2r:2`, `a2r:3` and `a2r:text`. `deeplab2` is DeepLab v2, whose tables
`deeplab2:3` and `deeplab2:4` are of no paper that this project reproduces; its nets are their descendants.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """A published number."""

    table: str
    metric: str
    """"mIoU", "pixel accuracy", or "IoU" and the name of a class; "mIoU without CRF" where the recipe has a CRF."""
    value: float | str
    """Value in per cent, or the paper's words if it gives no figure."""


WITHOUT_CRF = "mIoU without CRF"
"""Metric of the nets that have a number without and with the CRF of their recipe."""

CELLS = tuple(
    f"{merge}{scales}{suffix}"
    for scales in (2, 3)
    for merge in ("max", "average", "attention")
    for suffix in ("", "_esupv")
)
"""Cells of one result table: merge and number of scales, without and with extra supervision."""

_TABLES = {  # columns: max2, max2_esupv, average2, average2_esupv, attention2, attention2_esupv; second row: 3 scales
    ("person_part", "a2s:1", "mIoU"): (
        (52.90, 55.26, 52.71, 55.17, 53.49, 55.85),
        (53.02, 55.78, 52.56, 55.72, 53.12, 56.39),
    ),
    ("voc12", "a2s:3", "mIoU"): (
        (64.81, 67.43, 64.86, 67.79, 65.27, 68.24),
        (65.15, 67.79, 63.92, 67.98, 64.37, 69.08),
    ),
    ("voc12_coco", "a2s:5", "mIoU"): (
        (69.15, 70.01, 69.22, 70.44, 69.90, 70.76),
        (69.70, 70.06, 68.82, 70.55, 69.47, 71.42),
    ),
    ("coco_subset", "a2s:6", "mIoU"): (
        (32.95, 34.70, 33.69, 35.14, 34.03, 35.41),
        (33.58, 35.08, 33.74, 35.72, 33.42, 35.78),
    ),
    ("coco_subset", "a2s:7", "IoU person"): (
        (70.07, 71.06, 70.38, 71.60, 70.66, 72.20),
        (69.97, 71.43, 69.69, 71.70, 70.14, 72.72),
    ),
    ("person_part_msc", "a2s:unprinted", "mIoU"): (
        (53.98, 54.84, 54.90, 55.33, 54.70, 55.63),
        (54.53, 55.31, 55.14, 55.74, 54.78, 55.73),
    ),
    ("voc12_msc", "a2s:unprinted", "mIoU"): (
        (65.40, 65.06, 65.77, 66.44, 66.77, 66.99),
        (65.62, 65.39, 65.88, 66.86, 66.82, 67.13),
    ),
    ("coco_subset_msc", "a2s:unprinted", "mIoU"): (
        (33.18, 32.99, 33.84, 34.00, 34.17, 34.15),
        (33.38, 33.16, 33.68, 34.15, 33.87, 34.22),
    ),
}

_SINGLE: tuple[tuple[str, str, str, float | str], ...] = (
    ("person_part/largefov", "a2s:1", "mIoU", 51.91),
    ("person_part/msc_largefov", "a2s:text", "mIoU", 53.72),
    ("person_part/attention3_esupv", "a2s:2", "IoU head", 81.47),
    ("person_part/attention3_esupv", "a2s:2", "IoU torso", 59.06),
    ("person_part/attention3_esupv", "a2s:2", "IoU upper arms", 44.15),
    ("person_part/attention3_esupv", "a2s:2", "IoU lower arms", 42.50),
    ("person_part/attention3_esupv", "a2s:2", "IoU upper legs", 38.28),
    ("person_part/attention3_esupv", "a2s:2", "IoU lower legs", 35.62),
    ("person_part/attention3_esupv", "a2s:2", "IoU background", 93.65),
    ("person_part/attention3_esupv_one_layer", "a2s:text", "mIoU", "0.1 to 0.4 below attention3_esupv"),
    ("person_part/attention3_esupv_1x1", "a2s:text", "mIoU", "0.1 to 0.4 below attention3_esupv"),
    ("person_part/attention3_esupv_64", "a2s:text", "mIoU", "0.1 to 0.4 below attention3_esupv"),
    ("person_part/attention3_esupv_128", "a2s:text", "mIoU", "0.1 to 0.4 below attention3_esupv"),
    ("person_part/attention3_esupv_256", "a2s:text", "mIoU", "0.1 to 0.4 below attention3_esupv"),
    ("person_part/attention3_esupv_768", "a2s:text", "mIoU", "0.1 to 0.4 below attention3_esupv"),
    ("person_part/attention3_esupv_1024", "a2s:text", "mIoU", "0.1 to 0.4 below attention3_esupv"),
    ("person_part/attention3_esupv_fc8", "a2s:text", "mIoU", "about 0.5 below attention3_esupv"),
    ("person_part/attention3_esupv_fc6", "a2s:text", "mIoU", "similar to attention3_esupv"),
    ("person_part/attention4_esupv", "a2s:text", "mIoU", "0.5 below attention3_esupv"),
    ("voc12/largefov", "a2s:3", "mIoU", 62.28),
    ("voc12/msc_largefov", "a2s:text", "mIoU", 64.39),
    ("voc12/largefov_pool5a", "a2s:text", "mIoU", 62.25),
    ("voc12/msc_largefov_pool5a", "a2s:text", "mIoU", 64.21),
    ("voc12_test/largefov", "a2s:4", "mIoU", 65.1),
    ("voc12_test/msc_largefov", "a2s:4", "mIoU", 67.0),
    ("voc12_test/average3_esupv", "a2s:4", "mIoU", 70.5),
    ("voc12_test/max3_esupv", "a2s:4", "mIoU", 70.6),
    ("voc12_test/attention3_esupv", "a2s:4", "mIoU", 71.5),
    ("voc12_test/coco_crf_largefov", "a2s:4", "mIoU", 72.7),
    ("voc12_test/coco_crf_msc_largefov", "a2s:4", "mIoU", 73.6),
    ("voc12_test/coco_crf_attention", "a2s:4", "mIoU", 75.1),
    ("voc12_test/coco_crf_attention_scaleaug", "a2s:4", "mIoU", 75.7),
    ("voc12_coco/largefov", "a2s:5", "mIoU", 67.58),
    ("voc12_coco/msc_largefov", "a2s:unprinted", "mIoU", 68.90),
    ("coco_subset/largefov", "a2s:6", "mIoU", 31.22),
    ("coco_subset/largefov", "a2s:7", "IoU person", 68.76),
    ("coco_subset/msc_largefov", "a2s:text", "mIoU", 31.61),
    ("a2r_voc12/largefov", "a2r:1", "mIoU", 61.40),
    ("a2r_voc12/max2", "a2r:1", "mIoU", 63.88),
    ("a2r_voc12/average2", "a2r:1", "mIoU", 64.07),
    ("a2r_voc12/attention2_esupv", "a2r:1", "mIoU", 64.74),
    ("a2r_voc12/refine", "a2r:1", "mIoU", 67.98),
    ("a2r_voc12/attention2_esupv", "a2r:2", "mIoU", 64.74),
    ("a2r_voc12/multi_stage", "a2r:2", "mIoU", 65.80),
    ("a2r_voc12/multi_stage_dilation", "a2r:2", "mIoU", 66.83),
    ("a2r_voc12/refine", "a2r:2", "mIoU", 67.98),
    ("a2r_voc12/refine_bias", "a2r:text", "mIoU", "around 1 below refine"),
    *(
        (f"a2r_ade20k/{cell}", "a2r:3", metric, value)
        for cell, mean_iou, pixel_accuracy in (
            ("resnet34", 32.67, 76.41),
            ("attention", 35.11, 76.82),
            ("psp", 36.43, 78.01),
            ("refine", 37.07, 78.57),
            ("refine_psp", 38.21, 79.29),
        )
        for metric, value in (("mIoU", mean_iou), ("pixel accuracy", pixel_accuracy))
    ),
    *(
        (f"deeplab2_voc12/{cell}", table, metric, value)
        for cell, table, without_crf, with_crf in (
            ("largefov", "deeplab2:3", 65.76, 69.84),
            ("aspp_s", "deeplab2:3", 66.98, 69.73),
            ("aspp_l", "deeplab2:3", 68.96, 71.57),
            ("resnet101", "deeplab2:4", 76.35, 77.69),
        )
        for metric, value in ((WITHOUT_CRF, without_crf), ("mIoU", with_crf))
    ),
)


def _by_recipe() -> dict[str, tuple[Published, ...]]:
    by_recipe: dict[str, list[Published]] = {}
    for (group, table, metric), (two_scales, three_scales) in _TABLES.items():
        for cell, value in zip(CELLS, two_scales + three_scales, strict=True):
            by_recipe.setdefault(f"{group}/{cell}", []).append(Published(table, metric, value))
    for recipe, table, metric, number in _SINGLE:
        by_recipe.setdefault(recipe, []).append(Published(table, metric, number))
    return {recipe: tuple(numbers) for recipe, numbers in by_recipe.items()}


PUBLISHED = _by_recipe()
"""Published numbers by the name of the recipe."""

OTHER_SYSTEMS: tuple[tuple[str, str, float], ...] = (
    ("a2s:4", "TTI zoomout v2", 69.6),
    ("a2s:4", "ParseNet", 69.8),
    ("a2s:4", "CRF-RNN", 74.7),
    ("a2s:4", "BoxSup", 75.2),
    ("a2s:4", "DPN", 77.5),
    ("a2s:4", "Adelaide", 77.8),
    ("a2s:4", "DeepLab-CRF-Attention-DT", 76.3),
)
"""Numbers, mIoU, that a table quotes of other groups' systems: table, the paper's name of the system, value. They have
no recipe; docs/fidelity/claims.md states what each would need."""
