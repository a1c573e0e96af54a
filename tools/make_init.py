"""Makes an init.caffemodel with random weights for thin nets and trials, where no trained VGG-16 is at hand."""

from _run import run

import argparse
from pathlib import Path

from a2s_repro.caffe.conversion import random_init
from a2s_repro.models import Widths
from caffe_weights import write_caffemodel

EXAMPLE = """example:
  python tools/make_init.py init.caffemodel --width 0.125 --seed 0"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="the .caffemodel to write")
    parser.add_argument("--width", type=float, default=1.0, metavar="F", help="factor on all widths (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default 0)")
    args = parser.parse_args()
    write_caffemodel(args.output, random_init(Widths().scaled(args.width), args.seed))
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    run(main)
