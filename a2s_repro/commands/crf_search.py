"""Search the parameters of the dense CRF for a net.

Scores every combination of the given values by mean IoU on random images of a list. The defaults are the values of
the authors' search, who then searched on around the best.
"""

import argparse
import os

from a2s_repro.commands.options import (
    add_classes_option,
    add_device_option,
    add_images_options,
    add_json_option,
    add_model_option,
    add_old_spelling,
    add_pad_to_option,
    add_seed_option,
    add_workers_option,
    positive,
    print_results,
)

EXAMPLES = """\
  a2s crf-search --model runs/a3/final.pth --data-root data/voc12 --list data/voc12/list/val.txt \\
      --bi-w 3 4 5 --bi-xy-std 45 47 49 51 --bi-rgb-std 4 5 6      around the values of the submitted model"""

GRID = {
    "bi_w": (5, 10),
    "bi_xy_std": (40, 50, 60, 70, 80, 90, 100),
    "bi_rgb_std": (3, 4, 5, 6, 7, 8, 9, 10),
}
MEANINGS = {
    "bi_w": "weights of the bilateral kernel",
    "bi_xy_std": "standard deviations in position, in pixels",
    "bi_rgb_std": "standard deviations in colour, in grey levels",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_option(parser)
    add_images_options(parser)
    add_classes_option(parser)
    add_pad_to_option(parser)
    for name, values in GRID.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=float,
            nargs="+",
            default=values,
            metavar="X",
            help=f"{MEANINGS[name]} (default {' '.join(map(str, values))})",
        )
    steps = parser.add_argument(
        "--crf-iterations", type=int, default=10, metavar="N", help="iterations of mean field (default %(default)s)"
    )
    add_old_spelling(parser, "--iterations", steps)
    count = parser.add_argument(
        "--count",
        type=positive,
        default=100,
        metavar="N",
        help="number of images: a random part of the list (default 100)",
    )
    add_old_spelling(parser, "--images", count)
    add_seed_option(parser, of="the choice of the images", default=10)
    add_workers_option(parser, of="threads", default=os.cpu_count() or 1, kind=positive)
    add_json_option(parser)
    add_device_option(parser)


def main(arguments: argparse.Namespace) -> None:
    import a2s_repro
    from a2s_repro.analysis.crf_search import candidates, sample, search
    from a2s_repro.data.lists import read_list
    from a2s_repro.inference.crf import CRF
    from a2s_repro.inference.segmenter import class_names

    grid = {name: getattr(arguments, name) for name in GRID}
    crfs = candidates(CRF(iterations=arguments.crf_iterations), grid)
    segmenter = a2s_repro.load(arguments.model, arguments.device)
    classes = class_names(segmenter.model.num_classes, segmenter.meta, arguments.classes)
    items = read_list(arguments.list, arguments.data_root, label_dir=arguments.label_dir)
    items = sample(items, arguments.count, arguments.seed)
    result = search(segmenter.model, items, crfs, pad_to=arguments.pad_to, classes=classes, workers=arguments.workers)
    best = f"best on {result.images} images: {result.best}"
    print_results(f"{result.table()}\n{best}", result.summary(), arguments.json)
