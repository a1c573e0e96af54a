"""Build the paper's subset of MS COCO 2014, or all of it.

The subset has 10000 images for training and 1500 for validation; --full adds all 82783 of train2014. The archives:

  annotations  http://images.cocodataset.org/annotations/annotations_trainval2014.zip
  train        http://images.cocodataset.org/zips/train2014.zip
  val          http://images.cocodataset.org/zips/val2014.zip
"""

import argparse

from a2s_repro.commands.options import add_archive_option, add_preparing_options

EXAMPLES = """\
  a2s prepare-coco --annotations annotations_trainval2014.zip --train train2014.zip --val val2014.zip \\
      --out data/coco_subset
  a2s prepare-coco --full --annotations annotations_trainval2014.zip --train train2014.zip --val val2014.zip \\
      --out data/coco"""

ORDERS = ("file", "area")
CROWDS = ("ignore", "paint")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_archive_option(parser, "--annotations", "annotations of COCO")
    add_archive_option(parser, "--train", "images of train2014")
    add_archive_option(parser, "--val", "images of val2014")
    parser.add_argument(
        "--full",
        action="store_true",
        help="all of train2014 as list/train.txt, beside the lists of the subset: what coco/largefov is trained on",
    )
    parser.add_argument(
        "--order", choices=ORDERS, default="file", help="order of painting: as in the file (default), or large first"
    )
    parser.add_argument(
        "--crowd", choices=CROWDS, default="ignore", help="crowd regions: label 255 (default), or their category's"
    )
    add_preparing_options(parser, out="data/coco_subset")


def main(arguments: argparse.Namespace) -> None:
    from a2s_repro.data.coco import prepare_coco
    from a2s_repro.runtime.folder_lock import FolderLock

    with FolderLock(arguments.out):
        prepared = prepare_coco(
            arguments.annotations,
            arguments.train,
            arguments.val,
            arguments.out,
            full=arguments.full,
            order=arguments.order,
            crowd=arguments.crowd,
            check_counts=not arguments.allow_other_counts,
            workers=arguments.workers,
        )
    print(prepared.summary())
