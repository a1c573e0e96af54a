"""Train a net by a recipe.

The data set is PASCAL VOC 2012 or another in its layout; `a2s recipes` lists the recipes. A list of your own
(--train-list) needs its class names; without --recipe the schedule follows from its length. All files of the list are
checked first, and the net, the classes and the schedule are printed. Ctrl-C and SIGTERM finish the update and write a
snapshot; --resume RUN continues from it with the settings of the run. Only one run at a time can write to a folder.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from a2s_repro.commands.options import (
    DEFAULT_RECIPE,
    add_classes_option,
    add_data_root_option,
    add_device_option,
    add_init_option,
    add_out_option,
    add_precision_option,
    add_recipe_option,
    add_recipe_options,
    add_seed_option,
    add_size_options,
    add_stem_option,
    add_together_option,
    add_train_list_option,
    add_workers_option,
    device_named,
    positive,
)
from a2s_repro.errors import InputError

if TYPE_CHECKING:
    from a2s_repro.recipes import Recipe

EXAMPLES = """\
  a2s train --data-root data/voc12 --init init.pth --out runs/attention3_esupv
  a2s train --recipe a2r_ade20k/refine_psp --data-root data/ade20k --init resnet34.pth --out runs/refine_psp
  a2s train --data-root demo --train-list demo/ImageSets/Segmentation/train.txt --classes demo/classes.txt \\
      --scales 1 0.5 --width 0.125 --crop 129 --max-iter 300 --init thin.pth --out runs/demo
  a2s train --backbone timm:convnext_tiny --init pretrained --scales 1.5 1 0.5 --data-root data/mine \\
      --train-list data/mine/train.txt --out runs/mine
  a2s train --resume runs/demo
  torchrun --nproc-per-node 2 -m a2s_repro train ...      the passes of an update shared by two GPUs or processes"""

REQUIRED = {"data_root": "--data-root", "out": "--out"}
CLASSES_FILE = "classes.txt"
"""The class names in a data root, as the commands `a2s prepare-...` write them."""
COLOURS, SCALES = 0.3, (0.75, 1.5)
"""Ranges of --augment."""
DECODERS = ("c1", "psp")
NORMS = ("batch", "sync")
MERGES = ("attention", "hierarchical", "average", "max")
HEADS = ("attention", "refine")
RECALIBRATIONS = ("none", "multiply", "add")
NORMALIZATIONS = ("none", "l2", "batch")
MERGE_STRIDES = (4, 8)
SUPERVISIONS = ("raw", "recalibrated")
SOLVERS = ("caffe", "torch")
LR_POLICIES = ("step", "poly", "fixed", "multistep")
GAUSSIANS = ("ziggurat", "box-muller")


def add_options(parser: argparse.ArgumentParser) -> None:
    either = argparse.BooleanOptionalAction
    add_recipe_option(parser, default=f"{DEFAULT_RECIPE}; with --train-list own, whose schedule fits the list")

    files = parser.add_argument_group("files")
    add_data_root_option(files, default="the resumed run's")
    add_out_option(files, "the folder of the run", required=False)
    add_init_option(
        files,
        "made by `a2s convert` or by a run, or a classifier of the --backbone; pretrained: those that timm or "
        "torchvision publishes",
    )
    files.add_argument(
        "--resume",
        metavar="RUN|auto|FILE",
        help="continue a run: RUN is its folder, which is enough; auto is the run in --out, or a new one if that has "
        "no snapshot; FILE is a snapshot, or a .solverstate of Caffe with its .caffemodel beside it",
    )
    add_train_list_option(files)
    files.add_argument("--val-list", type=Path, metavar="FILE", help="list file of images to validate the net on")
    files.add_argument(
        "--validate-every",
        type=positive,
        metavar="N",
        help="iterations between two validations (default: as --snapshot); one comes at the end, too",
    )
    files.add_argument(
        "--patience", type=positive, metavar="N", help="end the training after N validations without a better mIoU"
    )
    add_classes_option(files, default="classes.txt in the data root; required for a list of your own")

    machine = parser.add_argument_group("machine")
    add_device_option(machine)
    add_precision_option(machine)
    machine.add_argument("--compile", action="store_true", help="torch.compile the net; takes minutes at the start")
    machine.add_argument("--cuda-graph", action="store_true", help="replay the compiled net as CUDA graphs")
    add_seed_option(machine, of="fillers, data, dropout")
    machine.add_argument(
        "--caffe-streams",
        nargs="?",
        const="ziggurat",
        choices=GAUSSIANS,
        help="draw data, dropout and fillers as Caffe's CPU build with random_seed SEED does; its gaussian filler is "
        "boost's: ziggurat from 1.56 on (default), box-muller before",
    )
    add_together_option(machine)
    add_workers_option(machine, of="processes that decode images, for each training process", default=None)
    machine.add_argument("--cache", action="store_true", help="decode all images at the start and keep them in memory")
    machine.add_argument("--keep", type=int, metavar="N", help="keep the N newest snapshots (default: all)")

    net = parser.add_argument_group("changes to the net of the recipe")
    add_recipe_options(net, "num-classes", "width")
    net.add_argument("--classifier", metavar="NAME", help="Caffe's name of fc8; one that --init lacks is filled anew")
    net.add_argument(
        "--backbone",
        metavar="NAME",
        help="net of each scale: vgg16, resnet34 (ResNet34-dilated8), resnet101 (DeepLab v2's), or a net of another "
        "package, timm:NAME or torchvision:NAME",
    )
    net.add_argument(
        "--output-stride",
        type=int,
        metavar="PIXELS",
        help="timm, torchvision: pixels per cell of the last map, 8 (default), 16 or 32",
    )
    net.add_argument(
        "--aspp", type=int, nargs="+", metavar="D", help="dilations of DeepLab v2's atrous spatial pyramid pooling"
    )
    add_stem_option(net)
    net.add_argument(
        "--decoder",
        choices=DECODERS,
        help="scores of resnet34, timm, torchvision: a 1x1 convolution, or pyramid pooling",
    )
    net.add_argument("--batch-norm", choices=NORMS, help="statistics of a process, or of all processes (CUDA)")
    net.add_argument(
        "--scales",
        type=float,
        nargs="+",
        metavar="S",
        help="scales of the image: 1 and any of 0.75 0.5 0.25; of timm, torchvision any of 2 1.5 1.25 1 0.75 0.5 0.25",
    )
    net.add_argument("--merge", choices=MERGES, help="how the score maps of the scales are merged")
    net.add_argument("--extra-supervision", action=either, help="a loss on the score map of every scale")
    net.add_argument("--skip-net", action=either, help="DeepLab-MSc-LargeFOV at every scale")

    head = parser.add_argument_group("changes to the attention head of the recipe")
    head.add_argument("--head", choices=HEADS, help="head of Attention to Scale, or of Attention to Refine")
    head.add_argument(
        "--head-features",
        metavar="LAYER",
        help="attention: its input (default: the last map of the backbone; of vgg16 also fc6, fc8)",
    )
    head.add_argument("--head-layers", type=int, metavar="N", help="attention: number of its layers, 1 to 3")
    head.add_argument("--head-kernel", type=int, metavar="K", help="attention: kernel of its first layer, 1 or 3")
    head.add_argument("--att-conv1", type=int, metavar="N", help="attention: filters of its first layer")
    head.add_argument("--head-stages", nargs="+", metavar="MAP", help="refine: maps that make up the hypercolumns")
    head.add_argument("--head-dilations", type=int, nargs="+", metavar="D", help="refine: a dilation for each scale")
    head.add_argument("--head-recalibration", choices=RECALIBRATIONS, help="refine: use of the recalibration")
    head.add_argument(
        "--head-normalization", choices=NORMALIZATIONS, help="refine: normalisation of the stages in a hypercolumn"
    )
    head.add_argument(
        "--head-merge-stride", type=int, choices=MERGE_STRIDES, help="refine: pixels per cell of the merged score map"
    )
    head.add_argument(
        "--head-supervision", choices=SUPERVISIONS, help="refine: score maps of the scales that have a loss"
    )
    head.add_argument("--refine", type=int, metavar="N", help="refine: filters of its layers")

    training = parser.add_argument_group("changes to the training of the recipe")
    add_recipe_options(training, "crop")
    training.add_argument(
        "--scale-augmentation",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="range of the random factors by which images are resized",
    )
    training.add_argument(
        "--colour-augmentation",
        type=float,
        metavar="F",
        help="largest deviation from 1 of the random factors on brightness, contrast and saturation",
    )
    training.add_argument(
        "--augment",
        action="store_true",
        help=f"colour and scale augmentation: --colour-augmentation {COLOURS:g} and --scale-augmentation "
        f"{SCALES[0]:g} {SCALES[1]:g}, where they are not given",
    )
    training.add_argument(
        "--class-weights",
        metavar="FILE|balanced",
        help="weight of each class in the losses: a file of one number a line, or inverse to its pixels in the list",
    )
    training.add_argument("--fill-crop", action=either, help="enlarge small images to the crop instead of padding them")
    training.add_argument(
        "--label-stride",
        type=int,
        metavar="PIXELS",
        help="pixels between the labels of the losses: 1 is full resolution; without it, the grid of each score map",
    )
    add_recipe_options(training, "batch-size", "iter-size", "max-iter")
    training.add_argument("--solver", choices=SOLVERS, help="SGD of Caffe, or torch.optim.SGD")
    training.add_argument("--lr-policy", choices=LR_POLICIES, help="schedule of the learning rate")
    add_recipe_options(training, "base-lr", "stepsize")
    training.add_argument(
        "--steps",
        dest="stepvalues",
        type=int,
        nargs="+",
        metavar="N",
        help="iterations at which the learning rate drops: policy multistep",
    )
    training.add_argument("--gamma", type=float, metavar="F", help="factor on the rate at a drop: step and multistep")
    training.add_argument("--power", type=float, metavar="F", help="policy poly: exponent of the decrease")
    training.add_argument("--weight-decay", type=float, metavar="F", help="decay of the weights, before decay_mult")
    training.add_argument("--snapshot", type=int, metavar="N", help="iterations between two snapshots")
    training.add_argument("--display", type=int, metavar="N", help="iterations between two lines of the log")
    add_recipe_options(training, "test-crop")
    add_size_options(training, default=None)
    _settings_left_open(parser)


def _settings_left_open(parser: argparse.ArgumentParser) -> None:
    """Options that are not given become None, so that a resumed run keeps its own settings."""
    for action in parser._actions:
        if action.default not in (None, argparse.SUPPRESS):
            action.help = action.help.replace("%(default)s", str(action.default))
            action.default = None


def _resumed_folder(arguments: argparse.Namespace) -> Path | None:
    """The folder of a run that goes on with its own settings, if there is one to resume."""
    from a2s_repro.checkpoint.snapshots import newest_snapshot
    from a2s_repro.checkpoint.trained import CONFIG

    if arguments.resume in (None, "auto"):
        folder = arguments.out if arguments.resume else None
        return folder if folder and newest_snapshot(folder) and (folder / CONFIG).is_file() else None
    resumed = Path(arguments.resume)
    if not resumed.exists():
        raise InputError(f"{resumed} does not exist: resume from the folder of a run or from a snapshot.")
    folder = resumed if resumed.is_dir() else resumed.parent
    if arguments.out and arguments.out.resolve() != folder.resolve():
        if resumed.is_dir():
            raise InputError(f"--resume {resumed} goes on in that folder: leave out --out {arguments.out}.")
        return None
    return folder if resumed.is_dir() or (folder / CONFIG).is_file() else None


def _named_recipe(name: str, settings: dict[str, Any], max_iter: int | None) -> "Recipe":
    from a2s_repro.data.lists import read_list
    from a2s_repro.recipes import find_recipe
    from a2s_repro.recipes.own import own_recipe

    if name != "own":
        return find_recipe(name)
    if "train_list" not in settings:
        raise InputError("the recipe own fits its schedule to a list of your own: give --train-list.")
    recipe = own_recipe(len(read_list(settings["train_list"], settings["data_root"])))
    return recipe.changed(stepsize=-(-max_iter // 3)) if max_iter else recipe


def _choose_classes(given: dict[str, Any], settings: dict[str, Any]) -> None:
    """Completes the class names of a new run, and their number."""
    from a2s_repro.data.lists import check_root, read_classes

    check_root(settings["data_root"])
    if not settings.get("classes") and (settings["data_root"] / CLASSES_FILE).is_file():
        settings["classes"] = settings["data_root"] / CLASSES_FILE
    if "num_classes" in given:
        return
    if settings.get("classes"):
        given["num_classes"] = len(read_classes(settings["classes"]))
    elif settings.get("train_list"):
        raise InputError(
            f"the classes of {settings['train_list']} are not known: give --classes, a file of names in the order "
            "of the labels, one a line (or --num-classes, for classes without names)."
        )


def _choose_loss_and_augmentation(given: dict[str, Any]) -> None:
    """Replaces the file of class weights by its numbers, and --augment by its ranges."""
    from a2s_repro.data.lists import read_class_weights
    from a2s_repro.recipes.recipe import BALANCED

    if given.get("class_weights", BALANCED) != BALANCED:
        given["class_weights"] = read_class_weights(given["class_weights"])
    if given.get("augment"):
        given.setdefault("colour_augmentation", COLOURS)
        given.setdefault("scale_augmentation", SCALES)


def _chosen(arguments: argparse.Namespace) -> tuple["Recipe", dict[str, Any]]:
    """The recipe, and the settings of the run: the options that were given, else those of the run that is resumed."""
    import dataclasses

    from a2s_repro.recipes import Recipe
    from a2s_repro.training import Run
    from a2s_repro.training.config import read_config, run_settings

    def fields(kind: type, values: dict[str, Any]) -> dict[str, Any]:
        return {field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values}

    given = {name: value for name, value in vars(arguments).items() if value is not None}
    settings, recipe = fields(Run, given), None
    if folder := _resumed_folder(arguments):
        config = read_config(folder)
        recipe = Recipe.of_config(config["recipe"])
        snapshot = "auto" if Path(arguments.resume).is_dir() else arguments.resume
        settings = fields(Run, run_settings(config)) | settings | {"out": folder, "resume": snapshot}
    if missing := [option for name, option in REQUIRED.items() if name not in settings]:
        raise InputError(
            f"{' and '.join(missing)} must be given, unless --resume RUN goes on with a run; "
            "`a2s train --help` shows the options."
        )
    if recipe is None or {"recipe", "classes"} & given.keys():
        _choose_classes(given, settings)
    if recipe is None or "recipe" in given:
        default = "own" if "train_list" in settings else DEFAULT_RECIPE
        recipe = _named_recipe(given.get("recipe", default), settings, arguments.max_iter)
    settings.setdefault("device", device_named("auto"))
    _choose_loss_and_augmentation(given)

    head = {name.removeprefix("head_"): value for name, value in given.items() if name.startswith("head_")}
    head = {name: None if value == "none" else value for name, value in head.items()}
    changes = {name: value for name, value in fields(Recipe, given).items() if name != "init"}  # a file of the run
    recipe = recipe.changed(**changes)
    return recipe.changed(head=recipe.changed_head(arguments.head, **head)), settings


def main(arguments: argparse.Namespace) -> int:
    from a2s_repro.runtime.distributed import is_main
    from a2s_repro.training import Run, train

    recipe, settings = _chosen(arguments)
    outcome = train(recipe, Run(**settings))

    if outcome.interrupted:
        if is_main():
            folder = settings["out"]
            print(f"interrupted after {outcome.iterations} iterations: {outcome.file}; go on with --resume {folder}")
        return 128 + outcome.interrupted
    if not is_main():
        return 0
    print(f"trained {outcome.iterations} iterations: {outcome.file}")
    if outcome.validation:
        print(outcome.validation.table(outcome.classes))
        if outcome.validation.attention:
            print(outcome.validation.attention_table())
        for number in recipe.published:
            print(f"published ({number.table}): {number.metric} {number.value}")
    return 0
