"""Builds the augmented VOC 2012 training set (train_aug, 10582 images) from VOC 2012 and SBD."""

from _run import run

import argparse

from a2s_repro.data.voc import SBD_SOURCE, VOC_SOURCE, prepare_voc


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n"
        "  python tools/prepare_voc.py --voc VOCtrainval_11-May-2012.tar --sbd benchmark.tgz --out data/VOC2012",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--voc", required=True, help=f"archive, or folder unpacked from it: {VOC_SOURCE}")
    parser.add_argument("--sbd", required=True, help=f"archive, or folder unpacked from it: {SBD_SOURCE}")
    parser.add_argument("--out", help="data root to make (default: the VOC folder, or VOC2012 beside the archive)")
    parser.add_argument("--allow-other-counts", action="store_true", help="accept parts of the data sets")
    arguments = parser.parse_args()
    root, counts = prepare_voc(
        arguments.voc, arguments.sbd, arguments.out, check_counts=not arguments.allow_other_counts
    )
    for name, count in counts.items():
        print(f"{name:>12}: {count} images")
    print(f"data root: {root}\ntraining list: {root}/list/train_aug.txt\nvalidation list: {root}/list/val.txt")


if __name__ == "__main__":
    run(main)
