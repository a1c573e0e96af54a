"""Train a thin VGG-16 to classify drawn shapes.

It is written as a .caffemodel: the demo's initial weights, in place of a VGG-16 trained on ImageNet.
Minutes to hours on a CPU.
"""

import argparse
from pathlib import Path

from a2s_repro.commands.options import add_seed_option, positive

EXAMPLES = """\
  a2s make-trunk vgg16_shapes.caffemodel --width 0.125 --seed 0"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUTPUT", help=".caffemodel to write")
    parser.add_argument(
        "--width", type=float, default=0.125, metavar="F", help="factor on all layers' widths (default %(default)s)"
    )
    parser.add_argument(
        "--max-iter",
        type=positive,
        default=2400,
        metavar="N",
        help="iterations of the training, each an update of the weights; of 32 pictures (default %(default)s)",
    )
    add_seed_option(parser, of="the initial weights, the pictures")


def main(arguments: argparse.Namespace) -> None:
    from a2s_repro.files import sha256_of
    from a2s_repro.models import Widths
    from a2s_repro.training.classifier import train_classifier
    from caffe_weights import write_caffemodel

    widths = Widths().scaled(arguments.width)
    net, accuracy = train_classifier(widths, arguments.max_iter, arguments.seed)
    write_caffemodel(arguments.output, net)
    print(f"accuracy on new pictures: {accuracy:.1%}")
    print(f"wrote {arguments.output}, sha256 {sha256_of(arguments.output)}")
