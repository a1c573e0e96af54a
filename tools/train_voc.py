"""Trains a net by a recipe, on PASCAL VOC 2012 or any other data set in VOC's layout."""

from _run import run
from _options import add_device_option

import argparse
import dataclasses
from pathlib import Path

from a2s_repro.data.caffe_rng import GAUSSIANS
from a2s_repro.data.lists import read_classes
from a2s_repro.models.refine import RECALIBRATIONS
from a2s_repro.models.resnet import DECODERS, NORMS, STEMS
from a2s_repro.models.share_net import MERGES
from a2s_repro.recipes import Recipe, find_recipe
from a2s_repro.recipes.recipe import BACKBONES, HEADS
from a2s_repro.runtime.distributed import is_main
from a2s_repro.runtime.precision import PRECISIONS
from a2s_repro.solver import LR_POLICIES, SOLVERS
from a2s_repro.training import Run, train

EXAMPLE = """examples:
  python tools/train_voc.py --recipe voc12/attention3_esupv --data-root VOCdevkit/VOC2012 \\
      --init init.pth --out runs/attention3_esupv --device cuda
  python tools/train_voc.py --recipe a2r_ade20k/refine_psp --data-root data/ade20k --init resnet34.pth \\
      --out runs/refine_psp --device cuda
  python tools/train_voc.py --data-root demo/shapes --train-list demo/shapes/ImageSets/Segmentation/train.txt \\
      --classes demo/shapes/classes.txt --scales 1 0.5 --width 0.125 --crop 129 --max-iter 300 \\
      --init thin.pth --out runs/shapes
  torchrun --nproc-per-node 2 tools/train_voc.py ...      every update's passes on two GPUs, or in two processes

recipes: see tools/recipes.py list"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="voc12/attention3_esupv", help="what to reproduce (default %(default)s)")
    files = parser.add_argument_group("files")
    files.add_argument("--data-root", type=Path, required=True, help="folder that holds JPEGImages")
    files.add_argument("--out", type=Path, required=True, help="the run's folder")
    files.add_argument(
        "--init", type=Path, help="what to start from: a weights file (tools/convert_caffe.py), or ResNet-34's"
    )
    files.add_argument(
        "--resume",
        metavar="auto|FILE",
        help="go on from the newest snapshot, a given one, or a .solverstate of Caffe's with its .caffemodel beside it",
    )
    files.add_argument("--train-list", type=Path, help="list file (default: the recipe's, in the data root)")
    files.add_argument("--val-list", type=Path, help="list file to evaluate on at the end")
    files.add_argument("--classes", type=Path, help="file of class names, one a line")
    machine = parser.add_argument_group("machine")
    add_device_option(machine)
    machine.add_argument("--precision", choices=PRECISIONS, default="caffe", help="caffe: plain float32 (default)")
    machine.add_argument("--compile", action="store_true", help="torch.compile the net: takes minutes at the start")
    machine.add_argument("--cuda-graph", action="store_true", help="replay the net's passes as CUDA graphs")
    machine.add_argument("--seed", type=int, default=0, help="of fillers, data and dropout (default 0)")
    machine.add_argument(
        "--caffe-streams",
        nargs="?",
        const="ziggurat",
        choices=GAUSSIANS,
        metavar="FILLER",
        help="draw data, dropout and fillers as Caffe's CPU build with random_seed SEED does; FILLER is how its boost "
        "makes gaussian values: ziggurat (1.56 and later, default) or box-muller (earlier)",
    )
    machine.add_argument("--workers", type=int, default=2, help="decoding processes for each training one (default 2)")
    machine.add_argument("--cache", action="store_true", help="decode all images at the start, and keep them in memory")
    machine.add_argument("--keep", type=int, metavar="N", help="keep the N newest snapshots (default: all)")
    net = parser.add_argument_group("changes to the recipe's net")
    net.add_argument("--num-classes", type=int, help="background included (default: as many as --classes names)")
    net.add_argument("--classifier", help="Caffe's name of fc8; another than the init file's starts it afresh")
    net.add_argument(
        "--backbone", choices=BACKBONES, help="resnet34 is ResNet34-dilated8; start from one of its recipes"
    )
    net.add_argument(
        "--stem", choices=tuple(STEMS), help="ResNet's first layers: three 3x3 convolutions, or torchvision's 7x7"
    )
    net.add_argument("--decoder", choices=DECODERS, help="on ResNet: one 1x1 convolution, or pyramid pooling")
    net.add_argument("--batch-norm", choices=tuple(NORMS), help="statistics of a process, or of all (CUDA)")
    net.add_argument("--scales", type=float, nargs="+", metavar="S", help="1 and any of 0.75 0.5 0.25")
    net.add_argument("--merge", choices=MERGES)
    net.add_argument("--extra-supervision", action=argparse.BooleanOptionalAction, help="a loss for every scale")
    net.add_argument("--skip-net", action=argparse.BooleanOptionalAction, help="DeepLab-MSc-LargeFOV at each scale")
    net.add_argument("--width", type=float, metavar="F", help="factor on all layers' widths")
    head = parser.add_argument_group("changes to the recipe's attention")
    head.add_argument("--head", choices=tuple(HEADS), help="of Attention to Scale, or of Attention to Refine")
    head.add_argument("--head-features", metavar="LAYER", help="attention: what it reads: fc6, fc7, fc8; layer4")
    head.add_argument("--head-layers", type=int, metavar="N", help="attention: its layers, 1 to 3")
    head.add_argument("--head-kernel", type=int, metavar="K", help="attention: side of the first one's window, 1 or 3")
    head.add_argument("--att-conv1", type=int, metavar="N", help="attention: filters of the first one")
    head.add_argument("--head-stages", nargs="+", metavar="MAP", help="refine: maps that make up the hypercolumns")
    head.add_argument("--head-dilations", type=int, nargs="+", metavar="D", help="refine: one for each scale")
    recalibrations = [str(value).lower() for value in RECALIBRATIONS]
    head.add_argument("--head-recalibration", choices=recalibrations, help="refine: what the other branch does")
    head.add_argument("--refine", type=int, metavar="N", help="refine: filters of its layers")
    changes = parser.add_argument_group("changes to the recipe's training")
    changes.add_argument(
        "--scale-augmentation", type=float, nargs=2, metavar=("LOW", "HIGH"), help="range of random resizing"
    )
    changes.add_argument("--fill-crop", action=argparse.BooleanOptionalAction, help="enlarge small images, do not pad")
    changes.add_argument("--crop", type=int, help="side of the training crops, 32k + 1 pixels")
    changes.add_argument("--test-crop", type=int, help="least side that images are padded to in evaluation")
    changes.add_argument("--short-sides", type=int, nargs="*", metavar="N", help="sizes to average over in evaluation")
    changes.add_argument("--solver", choices=SOLVERS, help="Caffe's SGD or torch.optim.SGD's")
    for name in ("max-iter", "batch-size", "iter-size", "stepsize", "snapshot", "display"):
        changes.add_argument(f"--{name}", type=int)
    for name in ("base-lr", "gamma", "power", "weight-decay"):
        changes.add_argument(f"--{name}", type=float)
    changes.add_argument("--lr-policy", choices=LR_POLICIES)
    arguments = vars(parser.parse_args())

    if arguments["classes"] and arguments["num_classes"] is None:
        arguments["num_classes"] = len(read_classes(arguments["classes"]))
    given = {name: value for name, value in arguments.items() if value is not None}
    recipe = find_recipe(arguments["recipe"])
    settings = _fields(Run, given)
    changes = _fields(Recipe, {name: value for name, value in given.items() if name not in settings})
    head = {name.removeprefix("head_"): value for name, value in given.items() if name.startswith("head_")}
    if head.get("recalibration") == "none":
        head["recalibration"] = None
    recipe = recipe.changed(**changes | {"head": recipe.changed_head(given.get("head"), **head)})
    outcome = train(recipe, Run(**settings))

    if outcome.interrupted:
        if is_main():
            print(f"interrupted after {outcome.iterations} iterations: {outcome.file}; go on with --resume auto")
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


def _fields(kind: type, values: dict) -> dict:
    return {field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values}


if __name__ == "__main__":
    run(main)
