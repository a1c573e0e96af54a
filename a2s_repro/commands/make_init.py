"""Write an init.caffemodel of random weights, for trials.

It stands in for a trained VGG-16, and fits thin nets.
"""

import argparse
from pathlib import Path

from a2s_repro.commands.options import add_seed_option

EXAMPLES = """\
  a2s make-init init.caffemodel --width 0.125 --seed 0"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUTPUT", help=".caffemodel to write")
    parser.add_argument(
        "--width", type=float, default=1.0, metavar="F", help="factor on all layers' widths (default %(default)s)"
    )
    add_seed_option(parser, of="the weights")


def main(arguments: argparse.Namespace) -> None:
    from a2s_repro.caffe.conversion import random_init
    from a2s_repro.models import Widths
    from caffe_weights import write_caffemodel

    write_caffemodel(arguments.output, random_init(Widths().scaled(arguments.width), arguments.seed))
    print(f"wrote {arguments.output}")
