"""Searches the parameters of the dense CRF for a net: every combination of the values given, scored by mean IoU on
random images of a list. By default the values of the authors' search; they then went on around the best.
"""

from _run import run
from _options import add_segmenting_options

import argparse
import json
import os

from a2s_repro.analysis.crf_search import GRID, candidates, sample, search
from a2s_repro.data.lists import read_list
from a2s_repro.files import replacing
from a2s_repro.inference.crf import CRF
from a2s_repro.inference.segmenter import class_names, load_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example, around the submitted model's values:\n"
        "  python tools/crf_search.py --model runs/x/final.pth --data-root data/VOC2012 \\\n"
        "      --list data/VOC2012/list/val.txt --bi-w 3 4 5 --bi-xy-std 45 47 49 51 --bi-rgb-std 4 5 6",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_segmenting_options(parser)
    for name, meaning in (
        ("bi_w", "weights of the bilateral kernel"),
        ("bi_xy_std", "standard deviations in position, in pixels"),
        ("bi_rgb_std", "standard deviations in colour, in grey levels"),
    ):
        values = " ".join(map(str, GRID[name]))
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=float,
            nargs="+",
            default=GRID[name],
            help=f"{meaning} (default {values})",
        )
    parser.add_argument("--iterations", type=int, default=10, help="of mean field inference (default %(default)s)")
    parser.add_argument("--images", type=int, default=100, help="how many of the list (default %(default)s)")
    parser.add_argument("--seed", type=int, default=10, help="which of them (default %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads (here by default %(default)s)")
    parser.add_argument("--json", help="write the scores, as fractions, to this file")
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error("--workers must be at least 1")

    crfs = candidates(CRF(iterations=arguments.iterations), {name: getattr(arguments, name) for name in GRID})
    model, meta = load_model(arguments.model, arguments.device)
    classes = class_names(model.num_classes, meta, arguments.classes)
    items = sample(
        read_list(arguments.list, arguments.data_root, label_dir=arguments.label_dir), arguments.images, arguments.seed
    )
    result = search(model, items, crfs, crop=arguments.crop, classes=classes, workers=arguments.workers)

    print(result.table())
    print(f"best on {result.images} images: {result.best}")
    if arguments.json:
        with replacing(arguments.json) as temporary:
            temporary.write_text(json.dumps(result.summary(), indent=1) + "\n")
        print(f"scores: {arguments.json}")


if __name__ == "__main__":
    run(main)
