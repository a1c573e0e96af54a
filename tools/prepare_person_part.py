"""Builds PASCAL-Person-Part (1716 images for training, 1817 for validation) from PASCAL-Part and VOC 2010."""

from _run import run
from _options import add_preparing_options

import argparse

from a2s_repro.data.person_part import PARTS_SOURCE, VOC10_SOURCE, prepare_person_part


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n"
        "  python tools/prepare_person_part.py --parts trainval.tar.gz --voc VOCtrainval_03-May-2010.tar \\\n"
        "      --out data/person_part",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", required=True, help=f"archive, or folder unpacked from it: {PARTS_SOURCE}")
    parser.add_argument("--voc", required=True, help=f"archive, or folder unpacked from it: {VOC10_SOURCE}")
    add_preparing_options(parser, out="data/person_part")
    arguments = parser.parse_args()
    prepared = prepare_person_part(
        arguments.parts,
        arguments.voc,
        arguments.out,
        check_counts=not arguments.allow_other_counts,
        workers=arguments.workers,
    )
    print(prepared.summary())


if __name__ == "__main__":
    run(main)
