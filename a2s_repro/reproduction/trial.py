"""A trial of all recipes in minutes: thin nets, drawn pictures, and random weights in the forms of the published."""

import math
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from tqdm import tqdm

from a2s_repro.caffe.conversion import GREY_LEVEL_DEVIATION, convert_file
from a2s_repro.checkpoint.weights import save_weights
from a2s_repro.data.demo import make_demo_data
from a2s_repro.data.lists import read_lines, write_lines
from a2s_repro.errors import InputError
from a2s_repro.recipes import PRETRAINED, RECIPES, Recipe
from a2s_repro.recipes.recipe import IMAGENET, RESNET34, RESNET101
from a2s_repro.reproduction.tables import Reproduction
from a2s_repro.runtime.progress import Progress
from caffe_weights import CaffeNet, Layer, write_caffemodel

SMOKE_CHANGES = {
    **{"width": 1 / 16, "crop": 65, "test_crop": 65, "batch_size": 2, "iter_size": 2},
    **{"max_iter": 2, "display": 1, "average_loss": 1, "snapshot": 2},
}
"""Widths, crops and batches of the nets in the golden recordings."""


def smoke(out: Path, recipes: Sequence[Recipe] = tuple(RECIPES.values())) -> list[str]:
    """Trains and scores thin copies of recipes in the folder `out`; returns the names of those that failed.

    `recipes` must list a recipe after the one it starts from. Output of the trainings goes to `out`/output.txt,
    tracebacks of failures to stderr. Raises InputError if `out` holds an earlier smoke run, whose results would be
    reused.
    """
    if (out / "runs").exists():
        raise InputError(f"{out} holds a smoke run already: remove it, or give another --out.")
    reproduction = Reproduction(draw_data_sets(out), draw_pretrained(out), out / "runs", SMOKE_CHANGES, workers=0)
    failed = []
    with open(out / "output.txt", "w") as output:
        for recipe in Progress(recipes, "recipes", "recipe"):
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
    """Creates a folder with all data sets of the recipes: own lists and classes, and the same few drawn pictures."""
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
    """The classes with published numbers, then numbered names up to the recipe's number of classes."""
    peers = (other for other in RECIPES.values() if other.dataset == recipe.dataset)
    metrics = dict.fromkeys(number.metric for other in peers for number in other.published)
    named = [metric.removeprefix("IoU ") for metric in metrics if metric.startswith("IoU ")]
    return named + [f"class {label}" for label in range(len(named), recipe.num_classes)]


def draw_pretrained(out: Path) -> dict[str, Path]:
    """Writes random initial weights of thin nets to the files of PRETRAINED.

    As the real ones, they are files of other programs, drawn by the shapes of those: torchvision's VGG-16, which
    `convert_file` turns into LargeFOV's trunk, CSAILVision's ResNet-34, and Caffe's ResNet-101 with its classifier.
    """
    files = {name: out / file for name, file in PRETRAINED.items()}
    width, generator = SMOKE_CHANGES["width"], torch.Generator().manual_seed(0)
    torch.save({key: _drawn(key, shape, generator) for key, shape in vgg16_shapes(width).items()}, out / "vgg16.pth")
    weights = convert_file(out / "vgg16.pth", subsample=True).weights
    save_weights(files[IMAGENET], weights.state_dict, weights.meta)
    shapes = csailvision_shapes(width)
    torch.save({key: _drawn(key, shape, generator) for key, shape in shapes.items()}, files[RESNET34])
    write_caffemodel(out / "resnet101.caffemodel", draw_caffe_resnet101(width, generator))
    weights = convert_file(out / "resnet101.caffemodel").weights
    save_weights(files[RESNET101], weights.state_dict, weights.meta)
    return files


def _drawn(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Weights by He's rule; batch norms that leave their input nearly as it is."""
    if len(shape) > 1:
        return torch.randn(shape, generator=generator) * (2 / math.prod(shape[1:])) ** 0.5
    return torch.zeros(shape) if key.endswith(("bias", "mean")) else torch.ones(shape)


def vgg16_shapes(width: float = 1) -> dict[str, tuple[int, ...]]:
    """The state dict of torchvision's vgg16, restated from its layers: 13 convolutions of 3x3, and three matrices.

    Each convolution is followed by a ReLU and each group by a pool, which take numbers, too; in the classifier ReLU and
    dropout do.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    number, inputs = 0, 3
    for outputs, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            channels = max(1, round(outputs * width))
            shapes |= {f"features.{number}.weight": (channels, inputs, 3, 3), f"features.{number}.bias": (channels,)}
            number, inputs = number + 2, channels
        number += 1
    hidden = round(4096 * width)
    for number, size in ((0, (hidden, inputs * 7 * 7)), (3, (hidden, hidden)), (6, (1000, hidden))):
        shapes |= {f"classifier.{number}.weight": size, f"classifier.{number}.bias": size[:1]}
    return shapes


def csailvision_shapes(width: float = 1) -> dict[str, tuple[int, ...]]:
    """The state dict of ResNet-34 in CSAILVision/semantic-segmentation-pytorch at e94bc36, restated from its class.

    Three 3x3 convolutions of 64 filters, four groups of blocks, and a classifier of Places365; batch norms of torch
    0.3, without `num_batches_tracked`. The first group takes 64 channels and gives 64, so it has no projection. The
    smoke run loads such a file into `ResNetDilated8`, of which this function is independent.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(convolution: str, norm: str, outputs: int, inputs: int, side: int = 3) -> None:
        shapes[f"{convolution}.weight"] = (outputs, inputs, side, side)
        shapes.update({f"{norm}.{kind}": (outputs,) for kind in ("weight", "bias", "running_mean", "running_var")})

    first, *groups = (max(1, round(channels * width)) for channels in (64, 64, 128, 256, 512))
    for number, inputs in ((1, 3), (2, first), (3, first)):
        layer(f"conv{number}", f"bn{number}", first, inputs)
    inputs = first
    for group, (blocks, outputs) in enumerate(zip((3, 4, 6, 3), groups, strict=True), 1):
        for block in range(blocks):
            name = f"layer{group}.{block}"
            layer(f"{name}.conv1", f"{name}.bn1", outputs, inputs)
            layer(f"{name}.conv2", f"{name}.bn2", outputs, outputs)
            if inputs != outputs:
                layer(f"{name}.downsample.0", f"{name}.downsample.1", outputs, inputs, side=1)
            inputs = outputs
    return shapes | {"fc.weight": (365, inputs), "fc.bias": (365,)}


def draw_caffe_resnet101(width: float, generator: torch.Generator) -> CaffeNet:
    """A ResNet-101 of ImageNet as Caffe stores it, random, restated from He et al.'s definition.

    Every convolution is without bias, and a BatchNorm (mean, variance, and the factor that both are divided by) and a
    Scale follow it; `fc1000` classifies. The smoke run loads such a file into `DeepLabResNet101`, which this function
    knows nothing of.
    """
    layers: list[Layer] = []

    def layer(name: str, place: str, outputs: int, inputs: int, side: int) -> None:
        shape = (outputs, inputs, side, side)
        weight = torch.randn(shape, generator=generator) * (2 / math.prod(shape[1:])) ** 0.5
        deviation = GREY_LEVEL_DEVIATION if inputs == 3 else 1
        mean, variance, factor = torch.zeros(outputs), torch.full((outputs,), 2.0 * deviation**2), torch.full((1,), 2.0)
        scale = [torch.full((outputs,), 0.2 if place.endswith("2c") else 1.0), torch.zeros(outputs)]
        for kind, title, blobs in (
            ("Convolution", name, [weight]),
            ("BatchNorm", f"bn{place}", [mean, variance, factor]),
            ("Scale", f"scale{place}", scale),
        ):
            layers.append(Layer(title, kind, [blob.numpy() for blob in blobs]))

    def scaled(channels: int) -> int:
        return max(1, round(channels * width))

    inputs = scaled(64)
    layer("conv1", "_conv1", inputs, 3, 7)
    for group, (blocks, inner) in enumerate(((3, 64), (4, 128), (23, 256), (3, 512)), 2):
        for number in range(blocks):
            letters = "abc"[number] if blocks == 3 else f"b{number}" if number else "a"
            block, middle = f"{group}{letters}_branch", scaled(inner)
            if not number:
                layer(f"res{block}1", f"{block}1", 4 * middle, inputs, 1)
            layer(f"res{block}2a", f"{block}2a", middle, inputs, 1)
            layer(f"res{block}2b", f"{block}2b", middle, middle, 3)
            layer(f"res{block}2c", f"{block}2c", 4 * middle, middle, 1)
            inputs = 4 * middle
    fc1000 = [torch.randn(1000, inputs, generator=generator).numpy(), torch.zeros(1000).numpy()]
    return CaffeNet("ResNet-101", [*layers, Layer("fc1000", "InnerProduct", fc1000)])
