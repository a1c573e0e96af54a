"""Draws what a net attends to, in the layouts of the papers' figures: a row per image, a map per scale."""

from _run import run
from _options import add_segmenting_options

import argparse

from a2s_repro.analysis.figures import LAYOUTS, attention_figure, figure_rows, save_figure
from a2s_repro.data.lists import read_list, select
from a2s_repro.inference.segmenter import Segmenter, class_names, load_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="layouts, each after image and ground truth:\n"
        "  weights        prediction, attention weights\n"
        "  comparison     baseline, prediction, attention weights (Attention to Scale, Fig. 5 and 6)\n"
        "  winner         max-pooling's weights in the baseline, attention weights (its Fig. 4)\n"
        "  recalibration  prediction, what recalibrates the scores of the most frequent classes (Attention to Refine)\n"
        "examples:\n"
        "  python tools/show_attention.py --model runs/x/final.pth --data-root data/VOC2012 \\\n"
        "      --list data/VOC2012/list/val.txt --ids 2007_000033 2007_000042 --out attention.png\n"
        "  python tools/show_attention.py --model runs/attention3/final.pth --layout winner \\\n"
        "      --baseline runs/max3/final.pth --data-root data/VOC2012 --list data/VOC2012/list/val.txt --out fig4.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_segmenting_options(parser)
    parser.add_argument("--layout", choices=LAYOUTS, default="weights", help="columns of the figure (see below)")
    parser.add_argument("--baseline", help="weights file of the net to compare with")
    parser.add_argument("--ids", nargs="+", metavar="ID", help="images of the list to show (default: the first COUNT)")
    parser.add_argument("--count", type=int, default=4, help="images to show without --ids (default %(default)s)")
    parser.add_argument("--out", required=True, help="PNG to write")
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error("--count must be at least 1")

    model, meta = load_model(arguments.model, arguments.device)
    classes = class_names(model.num_classes, meta, arguments.classes)
    segmenter, baseline = Segmenter(model, classes, meta, arguments.crop), None
    if arguments.baseline:
        other, other_meta = load_model(arguments.baseline, arguments.device)
        baseline = Segmenter(other, classes, other_meta, arguments.crop)
    items = read_list(arguments.list, arguments.data_root, label_dir=arguments.label_dir)
    items = select(items, arguments.ids) if arguments.ids else items[: arguments.count]
    rows = figure_rows(items, arguments.layout, segmenter, baseline)
    save_figure(arguments.out, attention_figure(rows, model.scales, classes, arguments.layout))
    print(arguments.out)


if __name__ == "__main__":
    run(main)
