"""Draw a small data set of textured shapes.

It is in VOC's layout, and the sizes of its shapes vary tenfold.
"""

import argparse
from pathlib import Path

from a2s_repro.commands.options import add_old_spelling, add_seed_option, positive

EXAMPLES = """\
  a2s make-demo-data demo
  a2s make-demo-data large --num-train 800 --seed 7"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="root of the data set to make")
    for name, pictures, default in (("train", "training", 60), ("val", "validation", 20)):
        number = parser.add_argument(
            f"--num-{name}",
            type=positive,
            default=default,
            metavar="N",
            help=f"number of {pictures} pictures (default %(default)s)",
        )
        add_old_spelling(parser, f"--{name}", number)
    add_seed_option(parser, of="the pictures")


def main(arguments: argparse.Namespace) -> None:
    from a2s_repro.data.demo import CLASSES, make_demo_data

    train, val = arguments.num_train, arguments.num_val
    root = make_demo_data(arguments.output, num_train=train, num_val=val, seed=arguments.seed)
    print(f"{root}: {train} training and {val} validation pictures of {len(CLASSES)} classes")
