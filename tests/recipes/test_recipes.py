"""Every published number has a recipe, changed recipes lose their numbers, and chains of recipes are trainable."""

import dataclasses
import json
from collections import Counter

import pytest

from a2s_repro.errors import InputError
from a2s_repro.models import AttentionHead, DeepLabMSc
from a2s_repro.recipes import OTHER_SYSTEMS, PUBLISHED, RECIPES, Recipe, find_recipe, recipes_of


def test_the_main_recipe():
    recipe = find_recipe("voc12/attention3_esupv")
    assert recipe.published == (("a2s:3", "mIoU", 69.08),)
    assert (recipe.scales, recipe.merge, recipe.extra_supervision) == ((1, 0.75, 0.5), "attention", True)
    assert (recipe.crop, recipe.test_crop, recipe.pool5a, recipe.dropout) == (321, 513, False, 0.5)
    assert (recipe.momentum, recipe.weight_decay, recipe.shared_decay) == (0.9, 5e-4, "per_stream")
    rate = recipe.learning_rate()
    assert [rate(i) for i in (0, 1999, 2000, 4000, 5999)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-5])
    assert (recipe.max_iter, recipe.init, recipe.ours) == (6000, "imagenet", ())


def test_every_published_number_has_a_recipe():
    assert set(PUBLISHED) <= set(RECIPES)
    assert all(recipe.published == PUBLISHED.get(name, ()) for name, recipe in RECIPES.items())
    in_table = Counter(number.table for numbers in PUBLISHED.values() for number in numbers)
    assert in_table == {
        **{"a2s:1": 13, "a2s:2": 7, "a2s:3": 13, "a2s:4": 9, "a2s:5": 13, "a2s:6": 13, "a2s:7": 13},
        **{"a2s:text": 15, "a2s:unprinted": 37},
        **{"a2r:1": 5, "a2r:2": 4, "a2r:3": 10, "a2r:text": 1},
        **{"deeplab2:3": 6, "deeplab2:4": 2},
    }


def test_table_4_is_complete():
    """16 rows: nine with a recipe, and seven of other groups' systems, which have none."""
    ours = {str(number.value): recipe.name for recipe in recipes_of("a2s:4") for number in recipe.published}
    assert ours["72.7"] == "voc12_test/coco_crf_largefov" and ours["73.6"] == "voc12_test/coco_crf_msc_largefov"
    others = {value for table, _, value in OTHER_SYSTEMS if table == "a2s:4"}
    assert len(ours) == 9 and others == {69.6, 69.8, 74.7, 75.2, 77.5, 77.8, 76.3}


def test_deeplabs_own_numbers_are_of_nets_with_pool5a_throughout():
    """Section 4.2: "They are similar to those (62.25% and 64.21%) reported in [11]"."""
    largefov, msc = (find_recipe(f"voc12/{name}_pool5a") for name in ("largefov", "msc_largefov"))
    assert [recipe.published[0].value for recipe in (largefov, msc)] == [62.25, 64.21]
    assert largefov.pool5a and msc.pool5a and msc.init == largefov.name
    assert dataclasses.replace(largefov, batch_size=15, iter_size=2, pool5a=False).changed(name="") == find_recipe(
        "voc12/largefov"
    ).changed(name="")


def test_coco_pretrained_nets_start_from_all_of_train2014():
    """The 16 numbers of this paper's nets in Tables 4 and 5 and unprinted ones, and 72.7 and 73.6."""
    pretrained = [recipe for recipe in RECIPES.values() if "coco" in recipe.name and recipe.dataset == "voc12"]
    assert sum(len(recipe.published) for recipe in pretrained) == 18
    for recipe in pretrained:
        while recipe.init.startswith("voc12_coco/"):
            recipe = find_recipe(recipe.init)
        assert recipe.init == "coco/largefov"
    full, subset = find_recipe("coco/largefov"), find_recipe("coco_subset/largefov")
    assert (full.training_set, subset.training_set) == ("list/train.txt", "list/train_small.txt")
    assert full.changed(dataset="coco_subset", training_set=subset.training_set).config() | {
        "name": subset.name, "ours": [], "published": subset.config()["published"]
    } == subset.config()  # fmt: skip


def test_the_parts_of_a_person_average_to_the_published_mean():
    numbers = dict(number[1:] for number in PUBLISHED["person_part/attention3_esupv"])
    mean = numbers.pop("mIoU")
    assert len(numbers) == 7 and sum(numbers.values()) / 7 == pytest.approx(mean, abs=0.005)


def test_the_recipes_of_a_table():
    assert [recipe.name for recipe in recipes_of("a2s:2")] == ["person_part/attention3_esupv"]
    assert {recipe.dataset for recipe in recipes_of("a2s:7")} == {"coco_subset"}
    with pytest.raises(InputError, match=r"no table 'a2s:8'; the tables are a2r:1, a2r:2, .*a2s:1, a2s:2"):
        recipes_of("a2s:8")


def test_a_recipe_comes_after_the_one_it_starts_from():
    before = {"imagenet", "resnet34", "resnet101"}
    for name, recipe in RECIPES.items():
        assert recipe.init in before, name
        before.add(name)


def test_a_frozen_trunk_starts_from_a_net_of_the_same_classifier():
    for recipe in RECIPES.values():
        if recipe.skip_net:
            assert find_recipe(recipe.init).classifier == recipe.classifier


def test_the_chain_of_the_submitted_system():
    recipe = find_recipe("voc12_test/coco_crf_attention_scaleaug")
    chain = []
    while recipe.init != "imagenet":
        chain.append(recipe)
        recipe = find_recipe(recipe.init)
    assert [link.name for link in (*chain, recipe)] == [
        "voc12_test/coco_crf_attention_scaleaug",
        "voc12_coco/attention3_esupv_scaleaug",
        "coco/largefov",
    ]
    submitted, first_stage = chain
    assert (submitted.training_set, submitted.evaluation_set) == ("list/trainval_aug.txt", "list/test.txt")
    assert submitted.hidden_labels and submitted.crf == {"bi_w": 4, "bi_xy_std": 49, "bi_rgb_std": 5}
    assert submitted.scale_augmentation == first_stage.scale_augmentation == (0.6, 1.4)


def test_the_net_of_a_recipe():
    net = find_recipe("voc12/average2").changed(width=1 / 32).net()
    assert (net.num_classes, net.scales, net.merge) == (21, (1, 0.5), "average")
    assert find_recipe("voc12/largefov").changed(width=1 / 32).net().scales == (1,)
    assert isinstance(find_recipe("person_part/msc_largefov").changed(width=1 / 32).net(), DeepLabMSc)
    assert find_recipe("coco_subset_msc/max3").changed(width=1 / 32).net().skip_net
    net = find_recipe("person_part/attention3_esupv_fc6").changed(width=1 / 32).net()
    assert net.head.att_conv1.in_channels == 3 * 1024 / 32 and net.head.att_conv1.out_channels == 512 / 32
    assert find_recipe("person_part/attention3_esupv_768").changed(width=1 / 32).net().widths.att_conv1 == 24


def test_the_command_of_a_recipe_starts_from_its_chain():
    assert find_recipe("voc12/max2").command() == (
        "a2s train --recipe voc12/max2 --data-root data/voc12 --init init.pth --out runs/voc12/max2"
    )
    command = find_recipe("voc12/max2").command("/data", "out", {"imagenet": "vgg.pth"})
    assert "--data-root /data/voc12 --init vgg.pth --out out/voc12/max2" in command
    assert "--init resnet34.pth" in find_recipe("a2r_ade20k/psp").command()
    command = find_recipe("voc12_coco/max2").command("/data", "out")
    assert "--data-root /data/voc12 --init out/coco/largefov/final.pth --out out/voc12_coco/max2" in command


def test_a_description_marks_what_is_ours():
    lines = find_recipe("voc12/max2").description().splitlines()
    assert lines[:2] == ["voc12/max2", "a2s:3: mIoU 64.81"] and " parameters, " in lines[2]
    assert {"iter_size           3   (ours)", "max_iter            6000"} <= set(lines)


def test_the_error_for_an_unknown_name_gives_the_nearest():
    with pytest.raises(InputError, match="no recipe 'voc12/attention_3_esup'; the nearest are voc12/attention3_esupv"):
        find_recipe("voc12/attention_3_esup")


def test_the_error_for_an_unknown_field_gives_the_nearest():
    with pytest.raises(InputError, match="no field 'bach_size'; the nearest are batch_size"):
        find_recipe("voc12/max2").changed(bach_size=3)


def test_a_changed_recipe_loses_the_published_number():
    recipe = find_recipe("voc12/max2")
    assert recipe.changed(max_iter=6000, scales=[1.0, 0.5], head=AttentionHead()) is recipe
    assert recipe.changed(max_iter=8000).published == ()
    assert recipe.published[0].value == 64.81


def test_the_rate_of_policy_multistep_drops_at_the_steps():
    recipe = find_recipe("voc12/max2").changed(lr_policy="multistep", stepvalues=[3, 5])
    again = Recipe.of_config(json.loads(json.dumps(recipe.config())))
    assert again == recipe
    assert [again.learning_rate()(i) for i in (2, 3, 5)] == pytest.approx([1e-3, 1e-4, 1e-5], rel=1e-6)


def test_another_number_of_classes_means_another_data_set():
    recipe = find_recipe("coco_subset/max2")
    assert recipe.changed(crop=129).classifier == "fc8_coco"
    assert recipe.changed(num_classes=11).classifier == "fc8"
    assert recipe.changed(num_classes=11, classifier="fc8_camvid").classifier == "fc8_camvid"


def test_the_cost_of_a_recipe():
    """Counted by hand for crops of 321: maps of 321, 161, 81 and 41 cells a side, convolutions with 9 or 1 taps."""
    largefov = find_recipe("voc12/largefov").cost()
    trunk = [(321, 3, 64), (321, 64, 64), (161, 64, 128), (161, 128, 128), (81, 128, 256), *[(81, 256, 256)] * 2]
    trunk += [(41, 256, 512), *[(41, 512, 512)] * 5, (41, 512, 1024)]
    expected = sum(9 * side**2 * inputs * outputs for side, inputs, outputs in trunk) + 41**2 * 1024 * (1024 + 21)
    assert largefov.total == expected and largefov.head == 0
    assert largefov.parameters == 14_714_688 + 4_719_616 + 1_049_600 + 21_525

    refine = find_recipe("a2r_voc12/refine").cost()
    assert refine.parameters == 43_522_412
    assert refine.head == 81**2 * (9 * 2 * 1472 * 512 + 9 * 2 * 1024 * 512 + 512 * (2 + 21))
    assert str(refine) == "43,522,412 parameters, 215.1 GMAC, of which 151.0 in the attention"
    assert f"\n{refine} for a crop of 321\n" in find_recipe("a2r_voc12/refine").description()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_round_trips_as_plain_values(recipe):
    assert Recipe.of_config(recipe.config()) == recipe


def test_settings_of_runs_before_skip_nets_existed_are_read():
    config = {"published_miou": 64.81, "name": "voc12/max2", "scales": [1, 0.5], "merge": "max", "batch_size": 10}
    recipe = Recipe.of_config(config)
    assert (recipe.name, recipe.scales, recipe.batch_size, recipe.skip_net) == ("voc12/max2", (1, 0.5), 10, False)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"snapshot": 0}, "snapshot is 0"),
        ({"scales": (1,)}, "two or more scales: give --no-extra-supervision"),
        ({"label_stride": 3}, "label_stride is 3; for a crop of 321 it must divide 320"),
        ({"short_sides": (300,), "factors": (1,)}, "give one of short_sides and factors"),
    ],
)
def test_impossible_changes_are_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        find_recipe("voc12/attention3_esupv").changed(**fields)
