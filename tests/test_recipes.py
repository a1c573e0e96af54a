"""The recipes are the authors' settings, and a changed one does not carry the published number."""

import pytest

from a2s_repro.errors import InputError
from a2s_repro.recipes import RECIPES, find_recipe


def test_the_main_recipe():
    recipe = find_recipe("voc12/attention3_esupv")
    assert recipe.published_miou == 69.08
    assert (recipe.scales, recipe.merge, recipe.extra_supervision) == ((1, 0.75, 0.5), "attention", True)
    assert (recipe.crop, recipe.test_crop, recipe.pool5a, recipe.dropout) == (321, 513, False, 0.5)
    assert (recipe.momentum, recipe.weight_decay, recipe.shared_decay) == (0.9, 5e-4, "per_branch")
    rate = recipe.learning_rate()
    assert [rate(i) for i in (0, 1999, 2000, 4000, 5999)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-5])
    assert recipe.max_iter == 6000


@pytest.mark.parametrize("name", RECIPES)
def test_thirty_images_make_an_update_in_the_authors_batches(name):
    recipe = find_recipe(name)
    batches = {"attention": (3, 10), "average": (10, 3), "max": (10, 3), None: (15, 2)}[recipe.merge]
    assert (recipe.batch_size, recipe.iter_size) == batches
    assert recipe.name == name and recipe.published_miou > 60
    assert recipe.extra_supervision == name.endswith("_esupv")


def test_a_recipe_for_each_cell_of_the_table():
    cells = [f"{merge}{s}{e}" for merge in ("average", "max", "attention") for s in (2, 3) for e in ("", "_esupv")]
    assert sorted(RECIPES) == sorted(f"voc12/{cell}" for cell in ["largefov", *cells])


def test_the_net_of_a_recipe():
    net = find_recipe("voc12/average2").changed(width=1 / 32).net()
    assert (net.num_classes, net.scales, net.merge) == (21, (1, 0.5), "average")
    assert find_recipe("voc12/largefov").changed(width=1 / 32).net().scales == (1,)


def test_one_experiment_trained_its_classifier_at_the_trunks_rate():
    recipe = find_recipe("voc12/average2_esupv").changed(width=1 / 32)
    rules = recipe.net().parameter_rules(recipe.lr_mult)
    assert rules["fc8.weight"].lr_mult == 1 and rules["fc8.bias"].lr_mult == 2
    assert not any(other.lr_mult for name, other in RECIPES.items() if name != "voc12/average2_esupv")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="no recipe 'voc12/attention_3_esup'; the nearest are voc12/attention3_esupv"):
        find_recipe("voc12/attention_3_esup")


def test_other_classes_mean_another_classifier_unless_it_is_named():
    recipe = find_recipe("voc12/largefov")
    assert recipe.changed(num_classes=7).classifier == "fc8"
    assert recipe.changed(num_classes=7, classifier=recipe.classifier).classifier == "fc8_voc12"


def test_a_changed_recipe_loses_the_published_number():
    recipe = find_recipe("voc12/max2")
    assert recipe.changed(max_iter=6000, scales=[1.0, 0.5]) is recipe
    assert recipe.changed(max_iter=8000).published_miou is None
    assert recipe.published_miou == 64.81


def test_another_number_of_classes_is_another_classifier():
    recipe = find_recipe("voc12/max2")
    assert recipe.changed(crop=129).classifier == "fc8_voc12"
    assert recipe.changed(num_classes=11).classifier == "fc8"
    assert recipe.changed(num_classes=11, classifier="fc8_camvid").classifier == "fc8_camvid"


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
