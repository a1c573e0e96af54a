"""Draw attention weights as in the papers' figures.

A row for each image, a map for each scale. The layouts, each after image and ground truth:

  weights        prediction, attention weights
  comparison     baseline, prediction, attention weights (Attention to Scale, Fig. 5 and 6)
  winner         max-pooling's weights in the baseline, attention weights (its Fig. 4)
  recalibration  prediction, recalibration of the most frequent classes (Attention to Refine)
"""

import argparse
from pathlib import Path

from a2s_repro.commands.options import (
    add_classes_option,
    add_device_option,
    add_ids_options,
    add_images_options,
    add_model_option,
    add_out_option,
    add_pad_to_option,
    add_scales_option,
    positive,
)
from a2s_repro.errors import InputError

EXAMPLES = """\
  a2s show-attention --model runs/a3/final.pth --data-root data/voc12 --list data/voc12/list/val.txt \\
      --ids 2007_000033 2007_000042 --out attention.png
  a2s show-attention --model runs/a3/final.pth --layout winner --baseline runs/max3/final.pth \\
      --data-root data/voc12 --list data/voc12/list/val.txt --out fig4.png"""

LAYOUTS = ("weights", "comparison", "winner", "recalibration")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_option(parser)
    add_scales_option(parser)
    add_images_options(parser)
    add_classes_option(parser)
    add_pad_to_option(parser)
    add_ids_options(parser, ids="those to show", count="the first of the list, without --ids", default=4)
    parser.add_argument(
        "--layout", choices=LAYOUTS, default="weights", help="columns of the figure (default %(default)s)"
    )
    parser.add_argument(
        "--baseline", type=Path, metavar="PATH", help="trained net to compare with, in layouts of two nets; as --model"
    )
    add_out_option(parser, "its suffix, as .png, .pdf or .svg, is its format", metavar="FILE")
    parser.add_argument("--dpi", type=positive, default=120, metavar="N", help="pixels per inch (default %(default)s)")
    add_device_option(parser)


def main(arguments: argparse.Namespace) -> None:
    if arguments.count < 1:
        raise InputError(f"--count is {arguments.count}: a figure needs at least one image.")

    from dataclasses import replace

    import a2s_repro
    from a2s_repro.analysis.figures import attention_figure, figure_rows, figure_suffix, save_figure
    from a2s_repro.data.lists import read_list, select
    from a2s_repro.inference.segmenter import class_names

    figure_suffix(arguments.out)
    segmenter, *baseline = (
        replace(a2s_repro.load(file, arguments.device, arguments.scales), pad_to=arguments.pad_to)
        for file in filter(None, (arguments.model, arguments.baseline))
    )
    classes = class_names(segmenter.model.num_classes, segmenter.meta, arguments.classes)
    items = read_list(arguments.list, arguments.data_root, label_dir=arguments.label_dir)
    items = select(items, arguments.ids) if arguments.ids else items[: arguments.count]
    rows = figure_rows(items, arguments.layout, segmenter, *baseline)
    save_figure(arguments.out, attention_figure(rows, segmenter.model.scales, classes, arguments.layout), arguments.dpi)
    print(arguments.out)
