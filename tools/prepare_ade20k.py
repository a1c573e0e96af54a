"""Prepares ADE20K SceneParsing (150 classes, 20210 images for training, 2000 for validation)."""

from _run import run
from _options import add_preparing_options

import argparse

from a2s_repro.data.ade20k import SOURCE, prepare_ade20k


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tools/prepare_ade20k.py --ade ADEChallengeData2016.zip --out data/ade20k",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ade", required=True, help=f"archive, or folder unpacked from it: {SOURCE}")
    add_preparing_options(parser, out="data/ade20k")
    arguments = parser.parse_args()
    prepared = prepare_ade20k(
        arguments.ade, arguments.out, check_counts=not arguments.allow_other_counts, workers=arguments.workers
    )
    print(prepared.summary())


if __name__ == "__main__":
    run(main)
