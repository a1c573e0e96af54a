"""A recipe's settings as JSON, changed by hand."""

import json
from pathlib import Path

import pytest

from a2s_repro.commands import command, parser_of
from a2s_repro.errors import InputError
from a2s_repro.recipes import RECIPES, find_recipe

NAME = "voc12/attention3_esupv"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What `a2s recipes NAME --json FILE` writes."""
    path = tmp_path / "mine.json"
    command("recipes").main(parser_of("recipes").parse_args([NAME, "--json", str(path)]))
    return path


@pytest.mark.parametrize("name", [NAME, "a2r_ade20k/refine_psp"])
def test_an_unchanged_file_is_the_recipe(tmp_path, name):
    path = tmp_path / "same.json"
    path.write_text(json.dumps(RECIPES[name].config()))
    assert find_recipe(str(path)) == RECIPES[name]


def test_a_changed_file_is_another_recipe_without_published_numbers(file):
    content = json.loads(file.read_text())
    content |= {"scales": [1, 0.5], "base_lr": 1}
    content["head"]["kernel"] = 1
    file.write_text(json.dumps(content))
    recipe = find_recipe(str(file))
    assert (recipe.scales, recipe.base_lr, recipe.head.kernel, recipe.published) == ((1, 0.5), 1, 1, ())
    assert recipe.num_classes == RECIPES[NAME].num_classes


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batchsize": 3}, r"mine.json: recipes have no field 'batchsize'; the nearest are batch_size"),
        ({"head": {"kernel": 1, "layer": 2}}, "cannot|no field 'layer'|not possible"),
        ({"crop": "321"}, r'crop is "321"; it must be a whole number'),
        ({"extra_supervision": "no"}, r'extra_supervision is "no"; it must be true or false'),
        ({"merge": "mean"}, "mean"),
    ],
)
def test_a_wrong_change_is_refused_with_the_file(file, change, sentence):
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=sentence) as caught:
        find_recipe(str(file))
    assert str(file) in str(caught.value)


def test_other_files_are_refused(tmp_path):
    for text in ("[1]", "{"):
        (tmp_path / "mine.json").write_text(text)
        with pytest.raises(InputError, match=r"start from the output of `a2s recipes NAME --json`"):
            find_recipe(str(tmp_path / "mine.json"))
