"""Trains and scores the cells of a paper's table, with the recipes that they start from, and writes RESULTS.md."""

from _run import run
from _options import add_device_option

import argparse
from pathlib import Path

from a2s_repro.reproduction import Reproduction, cells, smoke
from a2s_repro.runtime.precision import PRECISIONS

EXAMPLE = """examples:
  python tools/reproduce.py --table a2s:3 --data-root data --init init.pth --out reproduction --device cuda
  python tools/reproduce.py --table a2s:3 --cell attention3_esupv --dry-run
  python tools/reproduce.py --table a2r:3 --cell refine --resnet34 resnet34.pth --device cuda
  python tools/reproduce.py --smoke --out /tmp/smoke

Tables: see tools/recipes.py list. Data sets: DATA_ROOT/voc12, person_part, coco_subset and ade20k, as
docs/datasets.md has them. The same command again goes on where it was interrupted."""

TRIAL = ("width", "max_iter", "stepsize", "batch_size", "iter_size", "crop", "test_crop")
"""Fields of a recipe that may be changed."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", help="a table, such as a2s:3")
    what.add_argument("--smoke", action="store_true", help="every recipe for 2 iterations, thin, on drawn pictures")
    parser.add_argument("--cell", action="append", default=[], metavar="NAME", help="only this cell; may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and do nothing")
    parser.add_argument("--data-root", type=Path, default="data", help="folder of data sets (default %(default)s)")
    for name, net in (("init", "VGG-16"), ("resnet34", "ResNet-34")):
        file = f"{name}.pth"
        parser.add_argument(f"--{name}", type=Path, default=file, help=f"{net} of ImageNet (default %(default)s)")
    parser.add_argument(
        "--out", type=Path, default="reproduction", help="folder of the runs and RESULTS.md (default %(default)s)"
    )
    add_device_option(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="caffe", help="caffe: plain float32 (default)")
    parser.add_argument("--seed", type=int, default=0, help="of fillers, data and dropout (default 0)")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes (default 2)")
    changes = parser.add_argument_group("a scaled-down trial; RESULTS.md marks what was changed")
    changes.add_argument("--width", type=float, metavar="F", help="factor on all layers' widths; --init must have it")
    for name in TRIAL[1:]:
        changes.add_argument(f"--{name.replace('_', '-')}", type=int)
    arguments = parser.parse_args()

    if arguments.smoke and (arguments.cell or arguments.dry_run):
        parser.error("--smoke runs every recipe: --cell and --dry-run go with --table")
    if arguments.smoke:
        failed = smoke(arguments.out)
        print(f"failed: {', '.join(failed) or 'none'}; {arguments.out}/output.txt, {arguments.out}/runs/RESULTS.md")
        return 1 if failed else 0

    recipes = cells(arguments.table, arguments.cell)
    given = {name: getattr(arguments, name) for name in TRIAL}
    reproduction = Reproduction(
        data_root=arguments.data_root,
        pretrained={"imagenet": arguments.init, "resnet34": arguments.resnet34},
        out=arguments.out,
        changes={name: value for name, value in given.items() if value is not None},
        device=arguments.device,
        precision=arguments.precision,
        seed=arguments.seed,
        workers=arguments.workers,
    )
    if arguments.dry_run:
        print("\n".join(reproduction.commands(recipes)))
        return 0
    finished = reproduction.reproduce(recipes)
    print(f"{arguments.out}/RESULTS.md" if finished else "interrupted; the same command goes on")
    return 0 if finished else 130


if __name__ == "__main__":
    run(main)
