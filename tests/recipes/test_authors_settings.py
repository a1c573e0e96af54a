"""Every recipe of Attention to Scale against the settings in the authors' solvers and training nets.

Columns: the recipe; the authors' net in the experiment of its data set, where `noup:X` stands for
vgg128_noup_pool3_20M_largewinX, and `v1` for the published DeepLab v1; images per pass x passes; scales; whether the
net has the skip branches of MSc-LargeFOV, and pool5a; merge; features, filters and kernel of att_conv1; number of
losses; lr_mult of fc8 (weight/bias).
"""

import pytest

from a2s_repro.recipes import RECIPES, find_recipe

A2S = {name: recipe for name, recipe in RECIPES.items() if not name.startswith(("a2r_", "deeplab2_", "ours_"))}

AUTHORS = """
person_part/largefov             noup:4                  10x3 1               -    -      -         -          1 10/20
person_part/max2                 noup:_attention16       5x6  1,0.5           -    -      max       -          1 10/20
person_part/max2_esupv           noup:_attention29       15x2 1,0.5           -    -      max       -          3 10/20
person_part/average2             noup:_attention15_3     10x3 1,0.5           -    -      average   -          1 10/20
person_part/average2_esupv       noup:_attention27_3     10x3 1,0.5           -    -      average   -          3 10/20
person_part/attention2           noup:_attention53       3x10 1,0.5           -    -      attention fc7:512x3  1 10/20
person_part/attention2_esupv     noup:_attention56       3x10 1,0.5           -    -      attention fc7:512x3  3 10/20
person_part/max3                 noup:_attention20       15x2 1,0.75,0.5      -    -      max       -          1 10/20
person_part/max3_esupv           noup:_attention30       15x2 1,0.75,0.5      -    -      max       -          4 10/20
person_part/average3             noup:_attention19_3     10x3 1,0.75,0.5      -    -      average   -          1 10/20
person_part/average3_esupv       noup:_attention28_3     10x3 1,0.75,0.5      -    -      average   -          4 10/20
person_part/attention3           noup:_attention54       3x10 1,0.75,0.5      -    -      attention fc7:512x3  1 10/20
person_part/attention3_esupv     noup:_attention47       3x10 1,0.75,0.5      -    -      attention fc7:512x3  4 10/20
person_part/msc_largefov         ms:4                    10x3 1               skip pool5a -         -          1 0/0
person_part_msc/max2             ms:_attention10         10x3 1,0.5           skip -      max       -          1 0/0
person_part_msc/max2_esupv       ms:_attention11         10x3 1,0.5           skip -      max       -          3 0/0
person_part_msc/average2         ms:_attention2_2        10x3 1,0.5           skip -      average   -          1 0/0
person_part_msc/average2_esupv   ms:_attention5_2        10x3 1,0.5           skip -      average   -          3 0/0
person_part_msc/attention2       ms:_attention26         10x3 1,0.5           skip -      attention fc7:512x3  1 0/0
person_part_msc/attention2_esupv ms:_attention29         10x3 1,0.5           skip -      attention fc7:512x3  3 0/0
person_part_msc/max3             ms:_attention12         10x3 1,0.75,0.5      skip -      max       -          1 0/0
person_part_msc/max3_esupv       ms:_attention13         10x3 1,0.75,0.5      skip -      max       -          4 0/0
person_part_msc/average3         ms:_attention6_2        10x3 1,0.75,0.5      skip -      average   -          1 0/0
person_part_msc/average3_esupv   ms:_attention9_2        10x3 1,0.75,0.5      skip -      average   -          4 0/0
person_part_msc/attention3       ms:_attention27         10x3 1,0.75,0.5      skip -      attention fc7:512x3  1 0/0
person_part_msc/attention3_esupv ms:_attention30         10x3 1,0.75,0.5      skip -      attention fc7:512x3  4 0/0
coco_subset/largefov             noup:                   15x2 1               -    -      -         -          1 10/20
coco_subset/max2                 noup:_attention2        10x3 1,0.5           -    -      max       -          1 10/20
coco_subset/max2_esupv           noup:_attention6        10x3 1,0.5           -    -      max       -          3 10/20
coco_subset/average2             noup:_attention1_2      10x3 1,0.5           -    -      average   -          1 10/20
coco_subset/average2_esupv       noup:_attention5_2      10x3 1,0.5           -    -      average   -          3 10/20
coco_subset/attention2           noup:_attention9        3x10 1,0.5           -    -      attention fc7:512x3  1 10/20
coco_subset/attention2_esupv     noup:_attention11       3x10 1,0.5           -    -      attention fc7:512x3  3 10/20
coco_subset/max3                 noup:_attention4        10x3 1,0.75,0.5      -    -      max       -          1 10/20
coco_subset/max3_esupv           noup:_attention8        10x3 1,0.75,0.5      -    -      max       -          4 10/20
coco_subset/average3             noup:_attention3_2      10x3 1,0.75,0.5      -    -      average   -          1 10/20
coco_subset/average3_esupv       noup:_attention7_2      10x3 1,0.75,0.5      -    -      average   -          4 10/20
coco_subset/attention3           noup:_attention10       3x10 1,0.75,0.5      -    -      attention fc7:512x3  1 10/20
coco_subset/attention3_esupv     noup:_attention12       3x10 1,0.75,0.5      -    -      attention fc7:512x3  4 10/20
coco_subset/msc_largefov         ms:                     10x3 1               skip -      -         -          1 0/0
coco_subset_msc/max2             ms:_attention2          10x3 1,0.5           skip -      max       -          1 0/0
coco_subset_msc/max2_esupv       ms:_attention6          10x3 1,0.5           skip -      max       -          3 0/0
coco_subset_msc/average2         ms:_attention1          10x3 1,0.5           skip -      average   -          1 0/0
coco_subset_msc/average2_esupv   ms:_attention5          10x3 1,0.5           skip -      average   -          3 0/0
coco_subset_msc/attention2       ms:_attention9          10x3 1,0.5           skip -      attention fc7:512x3  1 0/0
coco_subset_msc/attention2_esupv ms:_attention11         10x3 1,0.5           skip -      attention fc7:512x3  3 0/0
coco_subset_msc/max3             ms:_attention4          10x3 1,0.75,0.5      skip -      max       -          1 0/0
coco_subset_msc/max3_esupv       ms:_attention8          10x3 1,0.75,0.5      skip -      max       -          4 0/0
coco_subset_msc/average3         ms:_attention3          10x3 1,0.75,0.5      skip -      average   -          1 0/0
coco_subset_msc/average3_esupv   ms:_attention7          10x3 1,0.75,0.5      skip -      average   -          4 0/0
coco_subset_msc/attention3       ms:_attention10         10x3 1,0.75,0.5      skip -      attention fc7:512x3  1 0/0
coco_subset_msc/attention3_esupv ms:_attention12         10x3 1,0.75,0.5      skip -      attention fc7:512x3  4 0/0
voc12/largefov                   noup:3                  15x2 1               -    -      -         -          1 10/20
voc12/largefov_pool5a            v1                  30x1 1               -    pool5a -         -          1 10/20
voc12/average2                   noup:_attention5_2      10x3 1,0.5           -    -      average   -          1 10/20
voc12/average2_esupv             noup:_attention9_2      10x3 1,0.5           -    -      average   -          3 1/2
voc12/attention2                 noup:_attention1        3x10 1,0.5           -    -      attention fc7:512x3  1 10/20
voc12/attention2_esupv           noup:_attention2        3x10 1,0.5           -    -      attention fc7:512x3  3 10/20
voc12/average3                   noup:_attention7_2      10x3 1,0.75,0.5      -    -      average   -          1 10/20
voc12/average3_esupv             noup:_attention11_2     10x3 1,0.75,0.5      -    -      average   -          4 10/20
voc12/attention3                 noup:_attention3        3x10 1,0.75,0.5      -    -      attention fc7:512x3  1 10/20
voc12/attention3_esupv           noup:_attention4        3x10 1,0.75,0.5      -    -      attention fc7:512x3  4 10/20
voc12/msc_largefov               ms:3                    10x3 1               skip pool5a -         -          1 0/0
voc12_msc/attention2             ms:_attention1          10x3 1,0.5           skip -      attention fc7:512x3  1 0/0
voc12_msc/attention2_esupv       ms:_attention3          10x3 1,0.5           skip -      attention fc7:512x3  3 0/0
voc12_msc/attention3             ms:_attention2          10x3 1,0.75,0.5      skip -      attention fc7:512x3  1 0/0
voc12_msc/attention3_esupv       ms:_attention4          10x3 1,0.75,0.5      skip -      attention fc7:512x3  4 0/0
voc12_coco/largefov              noup:3_coco             15x2 1               -    -      -         -          1 10/20
voc12_coco/max2                  noup:_coco_attention2   10x3 1,0.5           -    -      max       -          1 10/20
voc12_coco/max2_esupv            noup:_coco_attention8   10x3 1,0.5           -    -      max       -          3 10/20
voc12_coco/average2              noup:_coco_attention1_2 10x3 1,0.5           -    -      average   -          1 10/20
voc12_coco/average2_esupv        noup:_coco_attention7_2 10x3 1,0.5           -    -      average   -          3 10/20
voc12_coco/attention2            noup:_coco_attention19  3x10 1,0.5           -    -      attention fc7:512x3  1 10/20
voc12_coco/attention2_esupv      noup:_coco_attention21  3x10 1,0.5           -    -      attention fc7:512x3  3 10/20
voc12_coco/max3                  noup:_coco_attention4   10x3 1,0.75,0.5      -    -      max       -          1 10/20
voc12_coco/max3_esupv            noup:_coco_attention10  10x3 1,0.75,0.5      -    -      max       -          4 10/20
voc12_coco/average3              noup:_coco_attention3_2 10x3 1,0.75,0.5      -    -      average   -          1 10/20
voc12_coco/average3_esupv        noup:_coco_attention9_3 10x3 1,0.75,0.5      -    -      average   -          4 10/20
voc12_coco/attention3            noup:_coco_attention20  3x10 1,0.75,0.5      -    -      attention fc7:512x3  1 10/20
voc12_coco/attention3_esupv      noup:_coco_attention13  3x10 1,0.75,0.5      -    -      attention fc7:512x3  4 10/20
voc12_coco/msc_largefov          ms:3_coco               10x3 1               skip pool5a -         -          1 0/0
person_part/attention3_esupv_64  noup:_attention32       3x10 1,0.75,0.5      -    -      attention fc7:64x3   4 10/20
person_part/attention3_esupv_128 noup:_attention64       3x10 1,0.75,0.5      -    -      attention fc7:128x3  4 10/20
person_part/attention3_esupv_256 noup:_attention39       3x10 1,0.75,0.5      -    -      attention fc7:256x3  4 10/20
person_part/attention3_esupv_768 noup:_attention48       3x10 1,0.75,0.5      -    -      attention fc7:768x3  4 10/20
person_part/attention3_esupv_1024 noup:_attention49       3x10 1,0.75,0.5      -    -      attention fc7:1024x3 4 10/20
person_part/attention3_esupv_fc6 noup:_attention61       3x10 1,0.75,0.5      -    -      attention fc6:512x3  4 10/20
person_part/attention3_esupv_fc8 noup:_attention50       15x2 1,0.75,0.5      -    -      attention fc8:512x3  4 10/20
person_part/attention4_esupv     noup:_attention57       3x10 1,0.75,0.5,0.25 -    -      attention fc7:512x3  5 10/20
"""
ROWS = [line.split() for line in AUTHORS.strip().splitlines()]

HEAD = {"att_conv1", "att_fc"}


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_recipe_has_the_authors_settings(row):
    name, _, batch, scales, skip, pool5a, merge, head, losses, fc8 = row
    recipe = find_recipe(name)
    assert f"{recipe.batch_size}x{recipe.iter_size}" == batch
    assert ",".join(f"{scale:g}" for scale in recipe.scales) == scales
    assert (recipe.skip_net, recipe.pool5a) == (skip == "skip", pool5a == "pool5a")
    assert (recipe.merge or "-") == merge
    assert 1 + len(recipe.scales) * recipe.extra_supervision == int(losses)
    if recipe.merge == "attention":
        assert f"{recipe.head.features}:{recipe.att_conv1}x{recipe.head.kernel}" == head
        assert recipe.head.layers == 2

    rules = recipe.changed(width=1 / 64).net().parameter_rules(recipe.lr_mult)
    frozen = "0/0" if recipe.skip_net else "1/2"
    for layer in {key.rpartition(".")[0] for key in rules}:
        rate = "/".join(f"{rules[f'{layer}.{kind}'].lr_mult:g}" for kind in ("weight", "bias"))
        if layer == "fc8":
            assert rate == fc8
        elif layer in HEAD:
            assert rate == "10/20"
        elif layer.startswith(("conv", "fc")):
            assert rate == frozen
        else:
            assert recipe.skip_net and rate == "1/2"


@pytest.mark.parametrize("recipe", A2S.values(), ids=A2S)
def test_the_schedule_is_the_same_for_all(recipe):
    assert (recipe.base_lr, recipe.lr_policy, recipe.gamma, recipe.stepsize) == (1e-3, "step", 0.1, 2000)
    assert (recipe.momentum, recipe.weight_decay, recipe.shared_decay) == (0.9, 5e-4, "per_stream")
    assert recipe.max_iter == (8000 if recipe.training_set == "list/trainval_aug.txt" else 6000)
    assert recipe.batch_size * recipe.iter_size == 30
    assert (recipe.crop, recipe.dropout) == (321, 0.5)
    assert recipe.test_crop == (641 if recipe.dataset.startswith("coco") else 513)
    assert recipe.num_classes == {"voc12": 21, "person_part": 7, "coco_subset": 91, "coco": 91}[recipe.dataset]


def test_settings_that_the_authors_lack_are_marked_as_ours():
    rest = [recipe for recipe in A2S.values() if recipe.name not in {row[0] for row in ROWS}]
    assert {recipe.name.partition("/")[0] for recipe in rest} == {
        "voc12",
        "voc12_msc",
        "voc12_coco",
        "person_part",
        "voc12_test",
        "coco",
    }
    assert all(recipe.ours for recipe in rest)
    assert len(rest) == 4 + 8 + 1 + 2 + 9 + 1 + 1
