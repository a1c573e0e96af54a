"""Every published number has a recipe, changed recipes lose their numbers, and chains of recipes are trainable."""

import json
from collections import Counter

import pytest

from a2s_repro.errors import InputError
from a2s_repro.models import AttentionHead, DeepLabMSc
from a2s_repro.recipes import PUBLISHED, RECIPES, Recipe, find_recipe, recipes_of


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
        **{"a2s:1": 13, "a2s:2": 7, "a2s:3": 14, "a2s:4": 7, "a2s:5": 13, "a2s:6": 13, "a2s:7": 13},
        **{"a2s:text": 12, "a2s:unprinted": 37},
        **{"a2r:1": 5, "a2r:2": 4, "a2r:3": 10, "a2r:text": 1},
    }


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
    before = {"imagenet", "resnet34"}
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
        "coco_subset/largefov",
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
    assert "--data-root /data/voc12 --init out/coco_subset/largefov/final.pth --out out/voc12_coco/max2" in command


def test_a_description_marks_what_is_ours():
    lines = find_recipe("voc12/max2").description().splitlines()
    assert lines[:2] == ["voc12/max2", "a2s:3: mIoU 64.81"]
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
    ],
)
def test_impossible_changes_are_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        find_recipe("voc12/attention3_esupv").changed(**fields)
