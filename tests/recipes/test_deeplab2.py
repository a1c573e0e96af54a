"""DeepLab v2's recipes: the settings of its published solvers and definitions, the numbers of Tables 3 and 4."""

import pytest

from a2s_repro.errors import InputError
from a2s_repro.models import DeepLabASPP, DeepLabResNet101
from a2s_repro.recipes import RECIPES, find_recipe, recipes_of

VOC12 = [name for name in RECIPES if name.startswith("deeplab2_voc12/")]


@pytest.mark.parametrize("name", VOC12)
def test_settings_of_the_published_solvers(name):
    recipe = find_recipe(name)
    assert (recipe.lr_policy, recipe.power, recipe.max_iter, recipe.shared_decay) == ("poly", 0.9, 20000, "once")
    assert (recipe.momentum, recipe.weight_decay, recipe.average_loss, recipe.crop) == (0.9, 5e-4, 20, 321)
    assert recipe.batch_size * recipe.iter_size == 10
    resnet = recipe.backbone == "resnet101"
    assert recipe.base_lr == (2.5e-4 if resnet else 1e-3) and recipe.iter_size == (10 if resnet else 1)
    assert recipe.scale_augmentation == ((0.5, 1.5) if resnet else None)
    assert recipe.scales == ((1, 0.75, 0.5) if resnet else (1,)) and recipe.extra_supervision == resnet


def test_the_numbers_are_the_papers_and_apart_from_the_reproduced_ones():
    numbers = {name: [number.value for number in find_recipe(name).published] for name in VOC12}
    assert numbers == {
        "deeplab2_voc12/largefov": [65.76, 69.84],
        "deeplab2_voc12/aspp_s": [66.98, 69.73],
        "deeplab2_voc12/aspp_l": [68.96, 71.57],
        "deeplab2_voc12/resnet101": [76.35, 77.69],
        "deeplab2_voc12/resnet101_attention": [],
    }
    for table in ("deeplab2:3", "deeplab2:4"):
        for recipe in recipes_of(table):
            assert [number.metric for number in recipe.published] == ["mIoU without CRF", "mIoU"] and recipe.crf


def test_the_nets():
    nets = {name.partition("/")[2]: find_recipe(name).changed(width=1 / 32).net() for name in VOC12}
    assert isinstance(nets["aspp_s"], DeepLabASPP) and nets["aspp_s"].aspp == (2, 4, 8, 12)
    assert nets["aspp_l"].aspp == (6, 12, 18, 24)
    assert isinstance(nets["resnet101"], DeepLabResNet101) and nets["resnet101"].merge == "max"
    assert nets["resnet101_attention"].merge == "attention"


def test_pyramid_pooling_of_vgg16_is_for_one_scale():
    with pytest.raises(InputError, match="for one scale without skip branches: leave out aspp"):
        find_recipe("voc12/attention3_esupv").changed(aspp=(6, 12))
    with pytest.raises(InputError, match=r"aspp \(6, 12\) is not for the backbone resnet34"):
        find_recipe("a2r_ade20k/psp").changed(aspp=(6, 12))
