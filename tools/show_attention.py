"""Draws what a net attends to, as Figure 5 of the paper: image, ground truth, prediction, one weight map per scale."""

from _options import add_segmenting_options
from _run import run

import argparse

from a2s_repro.data.images import read_pair
from a2s_repro.data.lists import read_list, select
from a2s_repro.figures import Row, attention_figure, save_figure
from a2s_repro.segmenter import Segmenter, class_names, load_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n"
        "  python tools/show_attention.py --model runs/x/final.pth --data-root data/VOC2012 \\\n"
        "      --list data/VOC2012/list/val.txt --ids 2007_000033 2007_000042 --out attention.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_segmenting_options(parser)
    parser.add_argument("--ids", nargs="+", metavar="ID", help="images of the list to show (default: the first COUNT)")
    parser.add_argument("--count", type=int, default=4, help="images to show without --ids (default %(default)s)")
    parser.add_argument("--out", required=True, help="PNG to write")
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error("--count must be at least 1")

    model, meta = load_model(arguments.model, arguments.device)
    classes = class_names(model.num_classes, meta, arguments.classes)
    items = read_list(arguments.list, arguments.data_root, label_dir=arguments.label_dir)
    items = select(items, arguments.ids) if arguments.ids else items[: arguments.count]
    segmenter = Segmenter(model, classes, meta, arguments.crop)
    rows = []
    for item in items:
        image, truth = read_pair(item, model.num_classes)
        rows.append(Row(image, truth, segmenter(image)))
    save_figure(arguments.out, attention_figure(rows, model.scales, classes))
    print(arguments.out)


if __name__ == "__main__":
    run(main)
