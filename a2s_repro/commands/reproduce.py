"""Train and score the cells of a paper's table.

Also trains the nets that the cells start from, and writes RESULTS.md. After an interruption the same command continues.
`a2s recipes` lists the tables. The data sets are DIR/voc12, person_part, coco, coco_subset and ade20k, as the commands
`a2s prepare-...` make them.
"""

import argparse
from pathlib import Path

from a2s_repro.commands.options import (
    add_device_option,
    add_init_option,
    add_old_spelling,
    add_out_option,
    add_precision_option,
    add_recipe_options,
    add_seed_option,
    add_stem_option,
    add_workers_option,
    recipe_changes,
)
from a2s_repro.commands.run import FAILED, INTERRUPTED
from a2s_repro.errors import InputError

EXAMPLES = """\
  a2s reproduce --table a2s:3 --datasets data --init init.pth --out reproduction
  a2s reproduce --table a2s:3 --cell attention3_esupv --dry-run
  a2s reproduce --table a2r:3 --cell refine --resnet34 resnet34.pth
  a2s reproduce --smoke --out /tmp/smoke"""

COCO_STARTS = ("full", "subset")

TRIAL = ("width", "max-iter", "stepsize", "batch-size", "iter-size", "crop", "test-crop")


def add_options(parser: argparse.ArgumentParser) -> None:
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--table", metavar="TABLE", help="table of a paper: reproduce its cells, such as a2s:3")
    work.add_argument(
        "--smoke", action="store_true", help="train every recipe for 2 iterations, thin, on drawn pictures"
    )
    parser.add_argument("--cell", action="append", default=[], metavar="NAME", help="only this cell (repeatable)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    datasets = parser.add_argument(
        "--datasets",
        type=Path,
        default="data",
        metavar="DIR",
        help="folder of the prepared data sets, each in a folder of its name (default %(default)s)",
    )
    add_old_spelling(parser, "--data-root", datasets)
    add_init_option(parser, "VGG-16 of ImageNet", default="init.pth")
    parser.add_argument(
        "--resnet34",
        type=Path,
        default="resnet34.pth",
        metavar="FILE",
        help="weights file that nets on ResNet-34 start from (default %(default)s)",
    )
    parser.add_argument(
        "--resnet101",
        type=Path,
        default="resnet101.pth",
        metavar="FILE",
        help="weights file that nets of DeepLab v2 on ResNet-101 start from (default %(default)s)",
    )
    parser.add_argument(
        "--coco",
        choices=COCO_STARTS,
        default="full",
        help="COCO images for pretraining: all of train2014 (default), or the subset's 10000",
    )
    add_out_option(parser, "a folder for the runs and RESULTS.md", default="reproduction")
    add_device_option(parser)
    add_precision_option(parser)
    add_seed_option(parser, of="fillers, data, dropout")
    add_workers_option(parser, of="processes that decode images", default=None)
    trial = parser.add_argument_group("a trial on a smaller scale, marked as such in RESULTS.md")
    add_recipe_options(trial, *TRIAL)
    add_stem_option(trial)


def main(arguments: argparse.Namespace) -> int:
    import torch

    from a2s_repro.reproduction import Reproduction, cells, smoke
    from a2s_repro.runtime.precision import precision_on

    out = arguments.out
    if arguments.smoke:
        if arguments.cell or arguments.dry_run:
            raise InputError("--smoke runs every recipe: give --table with --cell and --dry-run.")
        failed = smoke(out)
        print(f"failed: {', '.join(failed) or 'none'}; {out}/output.txt, {out}/runs/RESULTS.md")
        return FAILED if failed else 0

    recipes = cells(arguments.table, arguments.cell)
    reproduction = Reproduction(
        data_root=arguments.datasets,
        pretrained={"imagenet": arguments.init, "resnet34": arguments.resnet34, "resnet101": arguments.resnet101},
        out=out,
        changes=recipe_changes(arguments, *TRIAL, "stem"),
        starts={"coco/largefov": "coco_subset/largefov"} if arguments.coco == "subset" else {},
        device=arguments.device,
        precision=precision_on(arguments.precision, torch.device(arguments.device)),
        seed=arguments.seed,
        workers=arguments.workers,
    )
    if arguments.dry_run:
        print("\n".join(reproduction.commands(recipes)))
        return 0
    finished = reproduction.reproduce(recipes)
    print(f"{out}/RESULTS.md" if finished else "interrupted; the same command goes on")
    return 0 if finished else INTERRUPTED
