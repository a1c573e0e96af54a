"""Class weights and augmentation of a training on own data; recipes of the papers have neither."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from a2s_repro.commands import parser_of
from a2s_repro.commands import train as command
from a2s_repro.data.image_seg import RandomStream, SegmentationDataset, recolour
from a2s_repro.data.images import read_pair
from a2s_repro.data.lists import read_list
from a2s_repro.errors import InputError
from a2s_repro.models.losses import softmax_with_loss
from a2s_repro.recipes import RECIPES
from a2s_repro.training import Run, Trainer
from tests import processes
from tests.processes import WIDTH, make_files

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

RECIPE = processes.RECIPE.changed(max_iter=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_files(tmp_path_factory.mktemp("shapes"), num_train=3)


def test_the_papers_recipes_have_no_weights_and_no_colours():
    assert {(recipe.class_weights, recipe.colour_augmentation) for recipe in RECIPES.values()} == {(None, None)}


def chosen(files: dict[str, Path], out: Path, *more: str) -> tuple:
    words = [f"--{name.replace('_', '-')}={path}" for name, path in files.items() if path]
    return command._chosen(parser_of("train").parse_args([*words, f"--out={out}", f"--width={WIDTH}", *more]))


def test_balanced_weights_are_inverse_to_the_pixels_and_stand_in_the_config(files, tmp_path):
    words = [f"--{name.replace('_', '-')}={path}" for name, path in files.items() if path]
    words += ["--max-iter=1", "--crop=65", "--scales", "1", "--iter-size=1", "--workers=0", "--class-weights=balanced"]
    arguments = parser_of("train").parse_args([*words, f"--out={tmp_path / 'run'}", f"--width={WIDTH}"])
    assert command.main(arguments) == 0
    weights = json.loads((tmp_path / "run/config.json").read_text())["recipe"]["class_weights"]
    labels = [read_pair(item, 6)[1] for item in read_list(files["train_list"], files["data_root"])]
    pixels = sum(np.bincount(each.ravel(), minlength=256)[:6] for each in labels)
    present = pixels > 0
    assert np.allclose((np.array(weights) * pixels)[present], pixels.sum() / present.sum())
    assert all(weight == 1 for weight in np.array(weights)[~present])


def test_a_file_of_weights_enters_every_loss(files, tmp_path):
    """The mean over pixels, each weighted by its class."""
    (tmp_path / "weights.txt").write_text("0.5\n2\n2\n2\n2\n2\n")
    recipe, _ = chosen(files, tmp_path / "run", "--class-weights", str(tmp_path / "weights.txt"))
    assert recipe.class_weights == (0.5, 2, 2, 2, 2, 2)
    items = read_list(files["train_list"], files["data_root"])
    trainers = [
        Trainer(RECIPE.changed(class_weights=weights), items, torch.device("cpu"), "fp32", seed=0)
        for weights in (None, (1,) * 6, recipe.class_weights)
    ]
    losses = []
    trainers[0].model.fc8.bias.data[0] = 3  # a net that has learned that most pixels are background
    for trainer in trainers:
        trainer.model.load_state_dict(trainers[0].model.state_dict())
        trainer.backward(trainer.batches(workers=0))
        losses.append(trainer.recent[-1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert all(losses[2][name] > 1.2 * value for name, value in losses[0].items())
    scores, labels = torch.randn(2, 6, 4, 4), torch.randint(6, (2, 4, 4))
    weights = torch.tensor(recipe.class_weights)
    theirs = torch.nn.functional.cross_entropy(scores, labels, weights)
    torch.testing.assert_close(softmax_with_loss(scores, labels, class_weights=weights), theirs)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("1\n2\n", "6 classes have 2 weights: give one for each"), ("1\nx\n", "line 2: 'x' is not a number")],
)
def test_wrong_weights_are_refused(files, tmp_path, text, sentence):
    (tmp_path / "weights.txt").write_text(text)
    with pytest.raises(InputError, match=sentence):
        chosen(files, tmp_path / "run", "--class-weights", str(tmp_path / "weights.txt"))


def test_augment_stands_for_its_two_ranges(files, tmp_path):
    recipe, _ = chosen(files, tmp_path / "run", "--augment", "--scale-augmentation", "1", "2")
    assert (recipe.colour_augmentation, recipe.scale_augmentation) == (command.COLOURS, (1, 2))


def test_colours_vary_about_the_images_own_by_the_draw_alone(files):
    items = read_list(files["train_list"], files["data_root"])
    plain, coloured = (SegmentationDataset(items, 6, 65, colour_deviation=value) for value in (None, 0.3))
    draws = RandomStream(len(items), batch_size=64, seed=0).batch(0)
    image, _ = read_pair(items[draws[0].index], 6)
    ratios = [recolour(image, 0.3, draw).mean() / image.mean() for draw in draws]
    assert 0.69 < min(ratios) < 0.85 and 1.15 < max(ratios) < 1.31 and abs(np.mean(ratios) - 1) < 0.06
    assert np.array_equal(recolour(image, 0.3, draws[0]), recolour(image, 0.3, draws[0]))
    assert torch.equal(plain[draws[0]].label, coloured[draws[0]].label)
    assert not torch.equal(plain[draws[0]].image, coloured[draws[0]].image)


def test_other_impossible_settings_are_refused(files, tmp_path):
    with pytest.raises(InputError, match="colours cannot deviate by 2"):
        SegmentationDataset([], 6, 65, colour_deviation=2)
    run = Run(out=tmp_path, **files)
    with pytest.raises(InputError, match="a patience of 3 is not possible: give at least 1 and a --val-list"):
        processes.train(RECIPE, Run(**vars(run) | {"patience": 3}))
