"""Every recipe for a moment: drawn pictures, thin nets, two iterations, and the whole way to RESULTS.md."""

import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from tqdm import tqdm

from a2s_repro.caffe.conversion import from_caffe, random_init
from a2s_repro.checkpoint import save_weights
from a2s_repro.data.demo import make_demo_data
from a2s_repro.data.lists import read_lines, write_lines
from a2s_repro.errors import InputError
from a2s_repro.models import ResNetDilated8, Widths
from a2s_repro.recipes import PRETRAINED, RECIPES, Recipe
from a2s_repro.recipes.recipe import IMAGENET, RESNET34
from a2s_repro.reproduction import Reproduction

CHANGES = {
    **{"width": 1 / 16, "crop": 65, "test_crop": 65, "batch_size": 2, "iter_size": 2},
    **{"max_iter": 2, "display": 1, "average_loss": 1, "snapshot": 2},
}
"""The widths, crops and batches of the nets that the golden figures are of."""


def smoke(out: Path, recipes: Sequence[Recipe] = tuple(RECIPES.values())) -> list[str]:
    """Trains and scores recipes, each after the one that it starts from, in the folder `out`; returns who failed.

    What the trainings print goes to `out`/output.txt, the traceback of a failure to stderr. Raises InputError if `out`
    holds an earlier run, which would not be done again.
    """
    if (out / "runs").exists():
        raise InputError(f"{out} holds a smoke run already: remove it, or give another --out.")
    reproduction = Reproduction(draw_data_sets(out), draw_pretrained(out), out / "runs", CHANGES, workers=0)
    failed = []
    with open(out / "output.txt", "w") as output:
        for recipe in tqdm(recipes, desc="recipes", unit="recipe", file=sys.stderr):
            try:
                with redirect_stdout(output), redirect_stderr(output):
                    reproduction.train(recipe)
                    reproduction.score(recipe)
            except Exception:
                tqdm.write(f"{recipe.name} failed:\n{traceback.format_exc()}", file=sys.stderr)
                failed.append(recipe.name)
    reproduction.write_results(recipes)
    return failed


def draw_data_sets(out: Path) -> Path:
    """A folder of all data sets that the recipes name, each with its lists, its classes and the same few pictures."""
    shapes = make_demo_data(out / "shapes", num_train=4, num_val=1)
    for recipe in RECIPES.values():
        root = out / "data" / recipe.dataset
        root.mkdir(parents=True, exist_ok=True)
        for name in ("JPEGImages", "SegmentationClass"):
            if not (root / name).exists():
                (root / name).symlink_to((shapes / name).resolve())
        for list_file, part in ((recipe.training_set, "train"), (recipe.evaluation_set, "val")):
            write_lines(root / list_file, read_lines(shapes / f"ImageSets/Segmentation/{part}.txt"))
        write_lines(root / "classes.txt", _class_names(recipe))
    return out / "data"


def _class_names(recipe: Recipe) -> list[str]:
    """Those that numbers are published for, and others to make up the recipe's number of classes."""
    peers = (other for other in RECIPES.values() if other.dataset == recipe.dataset)
    metrics = dict.fromkeys(number.metric for other in peers for number in other.published)
    named = [metric.removeprefix("IoU ") for metric in metrics if metric.startswith("IoU ")]
    return named + [f"class {label}" for label in range(len(named), recipe.num_classes)]


def draw_pretrained(out: Path) -> dict[str, Path]:
    """Random weights of the thin nets, in the files of PRETRAINED that recipes start from."""
    files = {name: out / file for name, file in PRETRAINED.items()}
    weights = from_caffe(random_init(Widths().scaled(CHANGES["width"]), seed=0), "random weights").weights
    save_weights(files[IMAGENET], weights.state_dict, weights.meta)
    resnet = ResNetDilated8(1, width=CHANGES["width"])
    encoder = {
        key: value for key, value in resnet.state_dict().items() if key.partition(".")[0] in resnet.encoder_layers
    }
    torch.save(encoder, files[RESNET34])
    return files
