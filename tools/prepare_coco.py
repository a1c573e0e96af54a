"""Builds the paper's subset of MS COCO 2014 (10000 images for training, 1500 for validation)."""

from _run import run
from _options import add_preparing_options

import argparse

from a2s_repro.data.coco import ANNOTATIONS_SOURCE, CROWDS, IMAGES_SOURCES, ORDERS, prepare_coco


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n"
        "  python tools/prepare_coco.py --annotations annotations_trainval2014.zip --train train2014.zip \\\n"
        "      --val val2014.zip --out data/coco_subset",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--annotations", required=True, help=f"archive, or its folder: {ANNOTATIONS_SOURCE}")
    for split, url in IMAGES_SOURCES.items():
        parser.add_argument(f"--{split}", required=True, help=f"archive of images, or its folder: {url}")
    parser.add_argument("--order", choices=ORDERS, default="file", help="paint as in the file (default) or large first")
    parser.add_argument(
        "--crowd", choices=CROWDS, default="ignore", help="make crowd regions 255 (default) or paint them"
    )
    add_preparing_options(parser, out="data/coco_subset")
    arguments = parser.parse_args()
    prepared = prepare_coco(
        arguments.annotations,
        arguments.train,
        arguments.val,
        arguments.out,
        order=arguments.order,
        crowd=arguments.crowd,
        check_counts=not arguments.allow_other_counts,
        workers=arguments.workers,
    )
    print(prepared.summary())


if __name__ == "__main__":
    run(main)
