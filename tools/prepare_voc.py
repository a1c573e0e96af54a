"""Builds the augmented VOC 2012 training set (train_aug, 10582 images) from VOC 2012 and SBD."""

from _run import run
from _options import add_preparing_options

import argparse

from a2s_repro.data.voc import SBD_SOURCE, VOC_SOURCE, VOC_TEST_SOURCE, prepare_voc


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n"
        "  python tools/prepare_voc.py --voc VOCtrainval_11-May-2012.tar --sbd benchmark.tgz --out data/voc12",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--voc", required=True, help=f"archive, or folder unpacked from it: {VOC_SOURCE}")
    parser.add_argument("--sbd", required=True, help=f"archive, or folder unpacked from it: {SBD_SOURCE}")
    parser.add_argument("--voc-test", help=f"archive or folder of the test images, if wanted: {VOC_TEST_SOURCE}")
    add_preparing_options(parser, out="data/voc12")
    arguments = parser.parse_args()
    prepared = prepare_voc(
        arguments.voc,
        arguments.sbd,
        arguments.out,
        voc_test=arguments.voc_test,
        check_counts=not arguments.allow_other_counts,
        workers=arguments.workers,
    )
    print(prepared.summary())


if __name__ == "__main__":
    run(main)
